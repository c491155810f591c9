//! A virtual machine on the KVM host: `vmsrs run` with a tap, from its start to its end.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::client::Client;

/// The host on the tap.
const HOST: &str = "192.168.77.1/24";
/// The guest on the tap.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);
/// Port of the server in the guest.
pub const PORT: u16 = 7878;

/// Name of the log of the guest's console.
const CONSOLE: &str = "console.log";
/// Time that `vmsrs run` has to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// What machine to boot.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Size of the window, as `vmsrs run --window` takes it.
    pub window: &'static str,
    /// How often a guest that goes down is booted anew; without it `vmsrs run` ends then.
    pub restarts: Option<u32>,
}

/// A running `vmsrs run`; killed when dropped.
#[derive(Debug)]
pub struct Machine {
    process: Child,
    socket: PathBuf,
}

impl Machine {
    /// Starts `vmsrs run`; its socket and its logs lie in `folder`.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(shape: &Shape, folder: &Path) -> Result<Self> {
        let socket = folder.join("vm.sock");
        let log = File::create(folder.join("vmsrs.log"))?;
        let mut command = Command::new("vmsrs");
        if let Some(restarts) = shape.restarts {
            command.args(["run", "--on-reboot", "restart"]);
            command.args(["--restarts", &restarts.to_string()]);
        } else {
            command.arg("run");
        }
        let process = command
            .arg("--kernel")
            .arg(&shape.kernel)
            .arg("--initramfs")
            .arg(&shape.initramfs)
            .args(["--memory", "512M", "--vcpus", &shape.vcpus.to_string()])
            .args(["--window", shape.window, "--pool", "2048"])
            .args(["--tap", &format!("tap0,{HOST}")])
            .arg("--socket")
            .arg(&socket)
            .arg("--console")
            .arg(folder.join(CONSOLE))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start vmsrs")?;
        Ok(Self { process, socket })
    }

    /// Waits until the server answers: seconds it took.
    ///
    /// # Errors
    ///
    /// When it does not within `limit`, or `vmsrs run` ends.
    pub fn wait_for_server(&mut self, address: SocketAddr, limit: Duration) -> Result<f64> {
        let start = Instant::now();
        loop {
            let answer = Client::connect(address, Duration::from_secs(5))
                .and_then(|mut client| client.stats());
            let error = match answer {
                Ok(_) => return Ok(start.elapsed().as_secs_f64()),
                Err(error) => error,
            };
            if let Some(status) = self.process.try_wait()? {
                bail!("vmsrs run ended with {status} before the server in the guest answered");
            }
            ensure!(
                start.elapsed() < limit,
                "the server in the guest did not answer within {} s: {error}",
                limit.as_secs()
            );
            // A refused connection comes back at once.
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Number of the process of `vmsrs run`.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Its control socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The log of the guest's console.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.socket.with_file_name(CONSOLE)
    }

    /// What a `vmsrs` command says with `--json`; nothing if it fails.
    #[must_use]
    pub fn ask(&self, command: &str) -> Option<Value> {
        let output = Command::new("vmsrs")
            .args([command, "--json", "--socket"])
            .arg(&self.socket)
            .output()
            .ok()?;
        if !output.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Prints what the host knows about these incidents, for whoever looks for their cause.
    pub fn print_incidents(&self, incidents: &[u64]) {
        for incident in incidents {
            let output = Command::new("vmsrs")
                .args(["incidents", &incident.to_string(), "--socket"])
                .arg(&self.socket)
                .output();
            if let Ok(output) = output {
                eprintln!("{}", String::from_utf8_lossy(&output.stdout));
            }
        }
    }

    /// Ends the machine as an operator would.
    ///
    /// # Errors
    ///
    /// When it has ended already, or does not end well in time.
    pub fn stop(mut self) -> Result<()> {
        if let Some(status) = self.process.try_wait()? {
            bail!("vmsrs run ended with {status} while the load ran");
        }
        let killed = Command::new("kill")
            .args(["-TERM", &self.process.id().to_string()])
            .status()
            .context("start kill")?;
        ensure!(killed.success(), "SIGTERM could not be sent to vmsrs run");
        let start = Instant::now();
        while start.elapsed() < STOP_LIMIT {
            if let Some(status) = self.process.try_wait()? {
                ensure!(
                    status.success(),
                    "vmsrs run ended with {status} after SIGTERM"
                );
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!(
            "vmsrs run did not end within {} s of SIGTERM",
            STOP_LIMIT.as_secs()
        )
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Writes a line to the results of the test-bed, or to standard output without one.
///
/// # Errors
///
/// When it cannot be written.
pub fn tell(message: &impl Serialize) -> Result<()> {
    let line = format!("{}\n", serde_json::to_string(message)?);
    match std::env::var_os("VMSRS_RESULTS") {
        Some(path) => OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .with_context(|| format!("write to {}", Path::new(&path).display())),
        None => {
            print!("{line}");
            Ok(())
        }
    }
}

/// The ends of the logs in a machine's folder, for messages.
#[must_use]
pub fn logs(folder: &Path) -> String {
    let mut text = String::new();
    for name in ["vmsrs.log", CONSOLE] {
        let content = fs::read(folder.join(name)).unwrap_or_default();
        let content = String::from_utf8_lossy(&content);
        let lines: Vec<&str> = content.lines().collect();
        let end = &lines[lines.len().saturating_sub(40)..];
        text.push_str(&format!("--- {name}\n{}\n", end.join("\n")));
    }
    text
}
