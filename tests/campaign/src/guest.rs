//! The side of the KVM host: boots a guest with `vmsrs run`, runs the campaign against its server,
//! tells what happened, and stops the guest.

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use vmsrs_bed::cpu;
use vmsrs_demo::machine::{GUEST, Machine, PORT, Shape, logs, tell};

use crate::cli::GuestArgs;
use crate::host::Host;
use crate::outcome::Outcome;
use crate::run::{self, Options, Progress};

/// Port in the guest that tells what its processes do.
pub const STATE_PORT: u16 = 7879;
/// Port in the guest at which the supervisor ends the process whose number it is told.
pub const SUPERVISOR_PORT: u16 = 7880;
/// Between two messages with counts.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// How often the host may restart the guest: more than is ever asked for.
const RESTARTS: u32 = 100;

/// What is told while the guest runs; a line of JSON each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The server answers.
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

/// The end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Done {
    /// What the run found.
    pub outcome: Outcome,
    /// Restarts of the guest, as the host counts them.
    pub guest_restarts: Option<u64>,
}

/// Boots, runs and stops. Trouble is told as a message and is no error.
///
/// # Errors
///
/// When nothing can be told.
pub fn run(args: &GuestArgs) -> Result<bool> {
    let folder = std::env::temp_dir().join(format!("vmsrs-campaign-{}", std::process::id()));
    fs::create_dir_all(&folder).context("make a folder for sockets and logs")?;
    let shape = Shape {
        kernel: args.kernel.clone(),
        initramfs: args.initramfs.clone(),
        vcpus: args.run.vcpus,
        window: "256M",
        restarts: Some(RESTARTS),
    };
    let result = Machine::start(&shape, &folder).and_then(|mut machine| {
        let done = with_guest(&mut machine, args)?;
        machine.stop()?;
        Ok(done)
    });
    let logs = logs(&folder);
    fs::remove_dir_all(&folder).context("remove the folder of sockets and logs")?;
    match result {
        Ok(done) => {
            if !done.outcome.broken_promises().is_empty() {
                eprintln!("{logs}");
            }
            tell(&Message::Done(Box::new(done)))?;
            Ok(true)
        }
        Err(error) => {
            eprintln!("{logs}");
            tell(&Message::Trouble(format!("{error:#}")))?;
            Ok(false)
        }
    }
}

fn with_guest(machine: &mut Machine, args: &GuestArgs) -> Result<Done> {
    let address = SocketAddr::from((GUEST, PORT));
    let seconds = machine.wait_for_server(address, Duration::from_secs(args.boot_timeout))?;
    tell(&Message::Ready { seconds })?;
    let mut told = Instant::now();
    let host = Host {
        process: machine.process_id(),
        socket: machine.socket().to_path_buf(),
        console: machine.console(),
        supervisor: SocketAddr::from((GUEST, SUPERVISOR_PORT)),
    };
    let options = Options {
        // The guest has what this machine has.
        keys: cpu::has_protection_keys().context("read /proc/cpuinfo")?,
        host: Some(host),
        ..args.run.options(address)
    };
    let outcome = run::run(&options, |progress| {
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            // Counts are a courtesy: the outcome at the end is what matters.
            let _ = tell(&Message::Progress(progress));
        }
    })?;
    if outcome.hangs > 0 {
        eprintln!("--- the guest's processes\n{}", guest_state());
    }
    machine.print_incidents(&outcome.incidents);
    let status = machine.ask("status");
    let guest_restarts = status.and_then(|status| status["restarts"].as_u64());
    Ok(Done {
        outcome,
        guest_restarts,
    })
}

/// What the guest says about its processes, for whoever looks for the cause of a hang.
fn guest_state() -> String {
    let read = || -> std::io::Result<String> {
        let address = SocketAddr::from((GUEST, STATE_PORT));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut text = Vec::new();
        let end = stream.read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text).into_owned();
        end.map_or_else(|error| Ok(format!("{text}\n{error}")), |_| Ok(text.clone()))
    };
    read().unwrap_or_else(|error| format!("the guest does not answer: {error}"))
}
