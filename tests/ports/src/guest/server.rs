//! A running server.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vmsrs_bed::{patience, process};

/// Where servers listen.
pub(super) const ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 11211);
/// How long a server may take to listen; it takes less than a second.
const START_LIMIT: Duration = Duration::from_secs(600);

/// A running server; killed when dropped.
pub(super) struct Server {
    process: Child,
}

impl Server {
    /// Starts the program with these arguments, and waits until it listens.
    pub(super) fn start(
        program: &str,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let process = Command::new(program)
            .args(["-u", "root", "-l", "127.0.0.1", "-U", "0"])
            .args(arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("start {program}"))?;
        let mut server = Self { process };
        let start = Instant::now();
        loop {
            match TcpStream::connect(ADDRESS) {
                Ok(_) => return Ok(server),
                Err(error) => {
                    ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
                    if let Some(status) = server.ended()? {
                        anyhow::bail!("{program} ended with {status}");
                    }
                    ensure!(
                        start.elapsed() < patience::scaled(START_LIMIT),
                        "{program} does not listen"
                    );
                    thread::sleep(Duration::from_millis(10));
                }
            }
        }
    }

    /// How it ended; `None` while it runs.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.process.try_wait()?)
    }

    /// Nanoseconds of CPU time that the server's threads have had, in user mode and in the kernel.
    pub(super) fn cpu_ns(&self) -> Result<u64> {
        process::cpu_ns(self.process.id()).context("the server's CPU time")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
