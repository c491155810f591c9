//! The plain ledger: built, started at fixed addresses, and ended.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use anyhow::{Context, Result};
use vmsrs_ledger::program;
use vmsrs_report::folder;

use crate::symbols::Symbols;

/// The server's program.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    /// Its functions.
    pub symbols: Symbols,
}

impl Program {
    /// Compiles the server into `folder`. Functions stay functions, so that requests can be stopped
    /// where one begins.
    ///
    /// # Errors
    ///
    /// As [`program::plain`].
    pub fn build(folder: &Path) -> Result<Self> {
        folder::create(folder)?;
        let path = program::plain(folder, &["-fno-inline".as_ref()])?;
        let symbols = Symbols::of(&path)?;
        Ok(Self { path, symbols })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts the server. Its addresses are the same at every start, and all threads use one heap.
    ///
    /// # Errors
    ///
    /// When it does not come up.
    pub fn start(&self) -> Result<Server> {
        let mut command = Command::new(&self.path);
        command
            .arg("0")
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        // SAFETY: async-signal-safe, and touches the child alone.
        unsafe {
            command.pre_exec(|| {
                libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong);
                Ok(())
            });
        }
        let mut process = command.spawn().context("starting the server")?;
        let stderr = process.stderr.take().context("the server has no output")?;
        let mut output = BufReader::new(stderr);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let port = line
            .trim()
            .rsplit(' ')
            .next()
            .and_then(|port| port.parse().ok());
        Ok(Server {
            port: port.with_context(|| format!("the server said {line:?} instead of its port"))?,
            process,
            _output: output,
        })
    }
}

/// A running server. Whoever traces it ends it.
#[derive(Debug)]
pub struct Server {
    /// Its port.
    pub port: u16,
    process: Child,
    _output: BufReader<ChildStderr>,
}

impl Server {
    /// The process.
    pub fn process(&self) -> libc::pid_t {
        // Process numbers are positive and small.
        self.process.id() as libc::pid_t
    }
}
