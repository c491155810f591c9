//! `vmsrs stop`: asks a guest to turn itself off, and waits until its VM has ended.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::text::{duration, printable, write_json};
use super::{Exit, Failure, Target};
use crate::control::{Client, ClientError, Request, VmProcess};
use crate::output::say;

/// Time after which the power button is pressed again: a guest that boots does not notice it.
const PRESS_AGAIN: Duration = Duration::from_secs(10);

/// Time that a VM has to end when it is not up to its guest.
const FORCED_END: Duration = Duration::from_secs(30);

/// Press the power button of a VM, and wait until its guest has turned itself off
///
/// The guest has to react to its power button: one with systemd does, any other with a program such as
/// acpid. Data of domains is gone when the VM has ended.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vmsrs stop web
  vmsrs stop web --timeout 300
  vmsrs stop web --timeout 30 --force

Exit codes: 0 the VM has ended, 2 invalid command line, 4 no VM reachable, 10 the guest has not turned
itself off in time and runs on (without --force).")]
pub(super) struct Arguments {
    /// Name of the VM, as with --name
    #[arg(value_name = "NAME", conflicts_with_all = ["name", "socket"])]
    vm: Option<String>,
    #[command(flatten)]
    target: Target,
    /// Longest time to wait for the guest
    #[arg(long, value_name = "SECONDS", default_value_t = 90)]
    timeout: u64,
    /// End the VM if its guest has not turned itself off by then: what the guest has not written to its disks
    /// is lost
    #[arg(long)]
    force: bool,
    /// Write one line of JSON (docs/reference-cli.md describes it)
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Serialize)]
struct Report {
    forced: bool,
    waited_ms: u64,
}

pub(super) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let mut target = arguments.target;
    if let Some(name) = arguments.vm {
        target.name = name;
    }
    let mut client = target.connect()?;
    let process = client.process().map_err(|error| {
        let text = "the VM's process cannot be watched: run `vmsrs stop` where it is visible, in its \
                    container or on the host";
        Failure::new(Exit::Unreachable, anyhow::Error::new(error).context(text))
    })?;
    let start = Instant::now();
    let timeout = Duration::from_secs(arguments.timeout);
    client.ask(Request::PowerButton {})?;
    let mut forced = false;
    if !turns_itself_off(&mut client, &process, start, timeout)? {
        if !arguments.force {
            let error = anyhow::anyhow!(
                "the guest has not turned itself off within {}, and runs on: see its console; --timeout \
                 waits longer, --force ends the VM",
                duration(milliseconds(timeout))
            );
            return Err(Failure::new(Exit::TimedOut, error));
        }
        forced = true;
        end(&target, &process)?;
        say(format_args!(
            "{}: the guest had not turned itself off within {}, and was ended",
            printable(&target.name),
            duration(milliseconds(timeout))
        ));
    }
    if arguments.json {
        write_json(&Report {
            forced,
            waited_ms: milliseconds(start.elapsed()),
        })?;
    }
    Ok(Exit::Ok)
}

/// Waits for the end of the VM, whose power button has been pressed at `start`, and presses it again
/// meanwhile; false after `timeout`.
fn turns_itself_off(
    client: &mut Client,
    process: &VmProcess,
    start: Instant,
    timeout: Duration,
) -> Result<bool, Failure> {
    loop {
        let left = timeout.saturating_sub(start.elapsed());
        if process.has_ended_within(left.min(PRESS_AGAIN))? {
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
        // A VM that is about to end no longer answers.
        let _ = client.ask(Request::PowerButton {});
    }
}

/// Ends the VM without its guest.
fn end(target: &Target, process: &VmProcess) -> Result<(), Failure> {
    match target.connect()?.ask(Request::Stop {}) {
        // It may have ended by itself just now.
        Ok(_) | Err(ClientError::Exchange(_)) => {}
        Err(error) => return Err(error.into()),
    }
    match process.has_ended_within(FORCED_END)? {
        true => Ok(()),
        false => {
            let error = anyhow::anyhow!("the VM does not end: it is stuck; kill its process");
            Err(Failure::new(Exit::TimedOut, error))
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
