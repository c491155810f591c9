//! The plain ledger, at fixed addresses.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::Result;
use vmsrs_ledger::{native, program};
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
    /// Compiles the server into `folder` without inlining, so that requests can be stopped where functions begin.
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

    /// The program's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts the server. Its addresses are the same at every start, and all threads use one heap.
    ///
    /// # Errors
    ///
    /// As [`native::spawn`].
    pub fn start(&self) -> Result<Server> {
        let mut command = Command::new(&self.path);
        command.env("MALLOC_ARENA_MAX", "1");
        // SAFETY: async-signal-safe, and affects only the child.
        unsafe {
            command.pre_exec(|| {
                libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong);
                Ok(())
            });
        }
        let (process, address) = native::spawn(&mut command)?;
        Ok(Server { process, address })
    }
}

/// A running server, which is ended by its tracer.
#[derive(Debug)]
pub struct Server {
    /// Its address.
    pub address: SocketAddr,
    process: Child,
}

impl Server {
    /// The process.
    pub fn process(&self) -> libc::pid_t {
        // Process IDs are positive and small.
        self.process.id() as libc::pid_t
    }
}
