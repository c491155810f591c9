//! A ledger server on this machine, for tests.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result};

/// A running ledger; killed when dropped.
#[derive(Debug)]
pub struct Ledger {
    process: Child,
    address: SocketAddr,
}

impl Ledger {
    /// Starts the program on a free port and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it cannot be started, or ends before it is ready.
    pub fn start(program: &Path) -> Result<Self> {
        let mut process = Command::new(program)
            .arg("0")
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let output = process.stderr.take().context("its standard error")?;
        let mut ledger = Self {
            process,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        };
        let mut lines = BufReader::new(output).lines();
        let port = lines
            .find_map(|line| line.ok()?.rsplit_once("ready on port ")?.1.parse().ok())
            .context("the server did not print its port")?;
        ledger.address.set_port(port);
        // The rest of its output is of no interest, but the pipe must stay open.
        thread::spawn(move || lines.for_each(drop));
        Ok(ledger)
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
