//! A ledger server on this machine, for tests.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

/// Starts a ledger on a free port and waits until it is ready: its process and its address.
///
/// # Errors
///
/// When it cannot be started, or ends before it is ready.
pub fn spawn(program: &mut Command) -> Result<(Child, SocketAddr)> {
    let mut process = program
        .arg("0")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", program.get_program().display()))?;
    let output = process.stderr.take().context("its standard error")?;
    let mut lines = BufReader::new(output).lines();
    let port = lines.find_map(|line| line.ok()?.rsplit_once("ready on port ")?.1.parse().ok());
    let Some(port) = port else {
        process.kill()?;
        process.wait()?;
        bail!("the server did not print its port");
    };
    // The rest of its output is of no interest, but the pipe must stay open.
    thread::spawn(move || lines.for_each(drop));
    Ok((process, SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
}

/// A running ledger; killed when dropped.
#[derive(Debug)]
pub struct Ledger {
    process: Child,
    address: SocketAddr,
}

impl Ledger {
    /// Starts the program.
    ///
    /// # Errors
    ///
    /// As [`spawn`].
    pub fn start(program: &Path) -> Result<Self> {
        let (process, address) = spawn(&mut Command::new(program))?;
        Ok(Self { process, address })
    }

    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Kills it at once, like `kill -9`.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.kill();
    }
}
