//! The side of the KVM host: runs the campaign against a guest's server.

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use vmsrs_bed::cpu;
use vmsrs_bed::guest::Guest;
use vmsrs_ledger::guest::session::{self, ProgressSender, print_incidents};
use vmsrs_ledger::guest::{Finding, address, ledger};
use vmsrs_report::steps::Count;

use crate::cli::GuestArgs;
use crate::host::Host;
use crate::image::{STATE_PORT, SUPERVISOR_PORT};
use crate::options::Options;
use crate::outcome::Outcome;
use crate::progress::Progress;
use crate::run;

/// The guest's name in messages.
pub const GUEST: &str = "of the campaign";
/// How often the host may restart the guest: more than any plan needs.
const RESTARTS: u32 = 100;

/// The result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Found {
    /// The run's own result.
    pub outcome: Outcome,
    /// Restarts of the guest, counted by the host.
    pub guest_restarts: Option<u64>,
}

impl Finding for Found {
    type Progress = Progress;

    fn count(progress: &Progress, elapsed: Duration) -> Count {
        progress.count(elapsed)
    }

    fn summary(&self) -> String {
        format!("{} errors made", self.outcome.errors_injected)
    }

    fn is_good(&self) -> bool {
        self.outcome.broken_promises().is_empty()
    }
}

/// Boots the guest, runs the campaign and stops the guest; returns whether there is a result.
///
/// # Errors
///
/// As [`session::run`].
pub fn run(args: &GuestArgs) -> Result<bool> {
    let config = args.boot.config().vcpus(args.run.vcpus).window("256M");
    let config = config.restarts(RESTARTS);
    session::run(GUEST, &args.boot, &config, |guest, sender| {
        with_guest(guest, sender, args)
    })
}

fn with_guest(guest: &Guest, sender: &mut ProgressSender, args: &GuestArgs) -> Result<Found> {
    let host = Host {
        process: guest.pid(),
        control: guest.control().clone(),
        console: guest.console_log(),
        supervisor: address(SUPERVISOR_PORT),
    };
    let options = Options {
        // The guest's CPU has this machine's features.
        keys: cpu::has_protection_keys().context("read /proc/cpuinfo")?,
        host: Some(host),
        ..args.run.options(ledger())
    };
    let outcome = run::run(&options, |progress| sender.progress::<Found>(progress))?;
    if outcome.hangs > 0 {
        eprintln!("--- the guest's processes\n{}", guest_state());
    }
    print_incidents(guest, &outcome.incidents);
    let status = guest.control().status().ok();
    Ok(Found {
        outcome,
        guest_restarts: status.and_then(|status| status["restarts"].as_u64()),
    })
}

/// The guest's report on its processes, to find the cause of a hang.
fn guest_state() -> String {
    let read = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address(STATE_PORT), Duration::from_secs(10))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut bytes = Vec::new();
        let end = stream.read_to_end(&mut bytes);
        let mut text = String::from_utf8_lossy(&bytes).into_owned();
        if let Err(error) = end {
            text.push_str(&format!("\n{error}"));
        }
        Ok(text)
    };
    read().unwrap_or_else(|error| format!("the guest does not answer: {error}"))
}
