//! The side of the KVM host: boots a guest with `vmsrs run`, makes the load against its server,
//! tells what happened, and stops the guest.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cli::GuestArgs;
use crate::load;
use crate::machine::{GUEST, Machine, PORT, Shape, logs, tell};
use crate::outcome::{Outcome, Progress};

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
    let shape = Shape {
        kernel: args.kernel.clone(),
        initramfs: args.initramfs.clone(),
        vcpus: 2,
        window: "64M",
        restarts: None,
    };
    let mut machine = Machine::start(&shape, folder)?;
    let done = load(&mut machine, args)?;
    machine.stop()?;
    Ok(done)
}

fn load(machine: &mut Machine, args: &GuestArgs) -> Result<Done> {
    let address = SocketAddr::from((GUEST, PORT));
    let seconds = machine.wait_for_server(address, Duration::from_secs(args.boot_timeout))?;
    tell(&Message::Ready { seconds })?;
    let mut told = Instant::now();
    let outcome = load::run(&args.load.options(address), |progress| {
        if told.elapsed() >= TELL_EVERY || progress.done == progress.total {
            told = Instant::now();
            // Counts are a courtesy: the outcome at the end is what matters.
            let _ = tell(&Message::Progress(progress));
        }
    })?;
    machine.print_incidents(&outcome.innocent_incidents);
    Ok(Done {
        name: args.name.clone(),
        outcome,
        status: machine.ask("status"),
        incidents: machine.ask("incidents").as_ref().and_then(count),
    })
}

/// Length of the list in the answer to `vmsrs incidents --json`.
fn count(answer: &Value) -> Option<u64> {
    let list = answer
        .as_array()
        .or_else(|| answer.get("incidents")?.as_array())?;
    Some(list.len() as u64)
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
