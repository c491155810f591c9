//! The side of the KVM host: boots a guest with `vmsrs run`, makes the load against its server,
//! tells what happened, and stops the guest.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cli::GuestArgs;
use crate::client::Client;
use crate::load;
use crate::outcome::{Outcome, Progress};

/// The host on the tap.
const HOST: &str = "192.168.77.1/24";
/// The guest on the tap.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);
/// Port of the server in the guest.
pub const PORT: u16 = 7878;

/// Time that `vmsrs run` has to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// Between two messages with counts.
const TELL_EVERY: Duration = Duration::from_millis(300);

/// What is told while a guest runs; a line of JSON each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The guest with this name is being booted.
    Booting(String),
    /// Its server answers.
    Ready {
        /// Seconds it took.
        seconds: f64,
    },
    /// Counts.
    Progress(Progress),
    /// All that was found.
    Done(Box<Done>),
    /// It went wrong, in words.
    Trouble(String),
}

/// The end of a guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Done {
    /// Name of the guest.
    pub name: String,
    /// What the load found.
    pub outcome: Outcome,
    /// What `vmsrs status --json` says, where it says anything.
    pub status: Option<Value>,
    /// Incidents that the host has recorded.
    pub incidents: Option<u64>,
}

/// Boots, loads and stops a guest. Trouble is told as a message and is no error.
///
/// # Errors
///
/// When nothing can be told.
pub fn run(args: &GuestArgs) -> Result<bool> {
    tell(&Message::Booting(args.name.clone()))?;
    let folder = std::env::temp_dir().join(format!("vmsrs-demo-{}", std::process::id()));
    fs::create_dir_all(&folder).context("make a folder for sockets and logs")?;
    let result = with_guest(args, &folder);
    let logs = logs(&folder);
    fs::remove_dir_all(&folder).context("remove the folder of sockets and logs")?;
    match result {
        Ok(done) => tell(&Message::Done(Box::new(done)))?,
        Err(error) => {
            eprintln!("{logs}");
            tell(&Message::Trouble(format!("{error:#}")))?;
            return Ok(false);
        }
    }
    Ok(true)
}

fn with_guest(args: &GuestArgs, folder: &Path) -> Result<Done> {
    let mut machine = Machine::start(args, folder)?;
    let done = machine.load(args)?;
    machine.stop()?;
    Ok(done)
}

/// A running `vmsrs run`; killed when dropped.
struct Machine {
    process: Child,
    socket: PathBuf,
}

impl Machine {
    fn start(args: &GuestArgs, folder: &Path) -> Result<Self> {
        let socket = folder.join("vm.sock");
        let log = File::create(folder.join("vmsrs.log"))?;
        let process = Command::new("vmsrs")
            .arg("run")
            .arg("--kernel")
            .arg(&args.kernel)
            .arg("--initramfs")
            .arg(&args.initramfs)
            .args(["--memory", "512M", "--vcpus", "2"])
            .args(["--window", "64M", "--pool", "2048"])
            .args(["--tap", &format!("tap0,{HOST}")])
            .arg("--socket")
            .arg(&socket)
            .arg("--console")
            .arg(folder.join("console.log"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start vmsrs")?;
        Ok(Self { process, socket })
    }

    fn load(&mut self, args: &GuestArgs) -> Result<Done> {
        let address = SocketAddr::from((GUEST, PORT));
        let seconds = self.wait_for_server(address, Duration::from_secs(args.boot_timeout))?;
        tell(&Message::Ready { seconds })?;
        let mut told = Instant::now();
        let outcome = load::run(&args.load.options(address), |progress| {
            if told.elapsed() >= TELL_EVERY || progress.done == progress.total {
                told = Instant::now();
                // Counts are a courtesy: the outcome at the end is what matters.
                let _ = tell(&Message::Progress(progress));
            }
        })?;
        self.print_incidents(&outcome.innocent_incidents);
        Ok(Done {
            name: args.name.clone(),
            outcome,
            status: self.ask("status"),
            incidents: self.ask("incidents").as_ref().and_then(count),
        })
    }

    /// Waits until the server answers: seconds it took.
    fn wait_for_server(&mut self, address: SocketAddr, limit: Duration) -> Result<f64> {
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

    /// What a `vmsrs` command says with `--json`; nothing if it fails.
    fn ask(&self, command: &str) -> Option<Value> {
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
    fn print_incidents(&self, incidents: &[u64]) {
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
    fn stop(mut self) -> Result<()> {
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

/// Length of the list in the answer to `vmsrs incidents --json`.
fn count(answer: &Value) -> Option<u64> {
    let list = answer
        .as_array()
        .or_else(|| answer.get("incidents")?.as_array())?;
    Some(list.len() as u64)
}

/// Writes a line to the results of the test-bed, or to standard output without one.
fn tell(message: &Message) -> Result<()> {
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

/// The ends of the logs, for messages.
fn logs(folder: &Path) -> String {
    let mut text = String::new();
    for name in ["vmsrs.log", "console.log"] {
        let content = fs::read(folder.join(name)).unwrap_or_default();
        let content = String::from_utf8_lossy(&content);
        let lines: Vec<&str> = content.lines().collect();
        let end = &lines[lines.len().saturating_sub(40)..];
        text.push_str(&format!("--- {name}\n{}\n", end.join("\n")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_way_through_a_line() {
        let progress = Progress {
            done: 5,
            ..Progress::default()
        };
        let line = serde_json::to_string(&Message::Progress(progress)).unwrap();
        assert!(!line.contains('\n'));
        match serde_json::from_str(&line).unwrap() {
            Message::Progress(again) => assert_eq!(again, progress),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn incidents_are_counted_with_and_without_a_wrapper() {
        assert_eq!(count(&serde_json::json!([1, 2])), Some(2));
        assert_eq!(count(&serde_json::json!({"incidents": [1]})), Some(1));
        assert_eq!(count(&serde_json::json!({"x": 1})), None);
    }
}
