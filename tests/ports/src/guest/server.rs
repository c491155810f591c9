//! A running server.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vmsrs::App;
use vmsrs_bed::{patience, process};

/// How long a server may take to listen; it takes less than a second.
const START_LIMIT: Duration = Duration::from_secs(600);

/// What a server prints. Not the console: each of its characters is an exit of the virtual CPU, and a server that is attacked
/// has much to say.
const LOG: &str = "/tmp/server.log";
/// Lines of it that tell how a server has ended.
const LAST_LINES: usize = 5;

/// How a server is started.
pub(super) struct Start<'a> {
    pub(super) program: &'a str,
    pub(super) arguments: &'a [&'a str],
    /// Of its environment.
    pub(super) variables: &'a [(&'a str, &'a str)],
    pub(super) port: u16,
}

/// Connects to a server.
pub(super) fn connect(port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port))
}

/// Waits until all that any server has committed is sealed: commits are sealed in order.
pub(super) fn seal() -> Result<()> {
    // SAFETY: there are no requests here.
    let app = unsafe { App::open("ports") }?;
    Ok(app.flush()?)
}

/// Commits of all servers so far, their pages, and pages that stay writable now.
pub(super) fn committed() -> Result<(u64, u64, u32)> {
    // SAFETY: there are no requests here.
    let info = unsafe { App::open("ports") }?.info()?;
    Ok((info.commits, info.sealed_pages, info.resident))
}

/// The last lines that a server has printed.
pub(super) fn last_lines() -> String {
    let text = fs::read(LOG).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join(" | ")
}

/// A running server; killed when dropped.
pub(super) struct Server {
    process: Child,
}

impl Server {
    /// Starts the program, and waits until it listens.
    pub(super) fn start(start: &Start<'_>) -> Result<Self> {
        let program = start.program;
        let log = File::create(LOG).context(LOG)?;
        let process = Command::new(program)
            .args(start.arguments)
            .envs(start.variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {program}"))?;
        let mut server = Self { process };
        let begin = Instant::now();
        loop {
            match connect(start.port) {
                Ok(_) => return Ok(server),
                Err(error) => {
                    ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
                    if let Some(status) = server.ended()? {
                        anyhow::bail!("{program} ended with {status}: {}", last_lines());
                    }
                    ensure!(
                        begin.elapsed() < patience::scaled(START_LIMIT),
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
