//! The side of the KVM host: runs the load against a guest's server.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use vmsrs_bed::guest::Guest;
use vmsrs_ledger::guest::session::{self, ProgressSender, print_incidents};
use vmsrs_ledger::guest::{Finding, ledger};
use vmsrs_ledger::load;
use vmsrs_ledger::load::outcome::{Outcome, Progress};
use vmsrs_report::steps::Count;

use crate::cli::GuestArgs;

/// The result of loading a guest's server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Loaded {
    /// The load's own result.
    pub outcome: Outcome,
    /// Incidents that the host has recorded.
    pub incidents: u64,
}

impl Finding for Loaded {
    type Progress = Progress;

    fn count(progress: &Progress, _: Duration) -> Count {
        count(progress)
    }

    fn summary(&self) -> String {
        match &self.outcome.died {
            Some(death) => format!("died at request {}", death.at_request),
            None => format!("answered {} requests", self.outcome.requests),
        }
    }

    fn is_good(&self) -> bool {
        // The server without VMSRS is meant to die; that guest's logs are not needed.
        self.outcome.protection == "plain" || self.outcome.broken_promises().is_empty()
    }
}

/// How the progress of a load is shown.
#[must_use]
pub fn count(progress: &Progress) -> Count {
    Count {
        done: progress.done,
        total: progress.total,
        words: format!(
            "requests, {} fatal, {} recovered, {} others failed",
            progress.fatal, progress.recovered, progress.innocent_failed
        ),
    }
}

/// Boots a guest, runs the load and stops the guest; returns whether there is a result.
///
/// # Errors
///
/// As [`session::run`].
pub fn run(args: &GuestArgs) -> Result<bool> {
    session::run(
        &args.name,
        &args.boot,
        &args.boot.config().vcpus(args.vcpus),
        |guest, sender| load(guest, sender, args),
    )
}

fn load(guest: &Guest, sender: &mut ProgressSender, args: &GuestArgs) -> Result<Loaded> {
    let outcome = load::run(&args.load.options(ledger()), |progress| {
        sender.progress::<Loaded>(progress);
    })?;
    print_incidents(guest, &outcome.innocent_incidents);
    Ok(Loaded {
        outcome,
        incidents: guest.control().incidents()?.len() as u64,
    })
}
