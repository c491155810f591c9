//! `report.json`.

use serde::{Deserialize, Serialize};

use crate::outcome::{KindOutcome, Outage, Outcome, Untagged};

/// What the campaign found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Seed of the plan.
    pub seed: u64,
    /// Errors that were made.
    pub errors_injected: u64,
    /// Per kind of error, a number for each outcome class.
    pub kinds: Vec<KindOutcome>,
    /// Requests and states of others that were not as they must be.
    pub others_harmed: u64,
    /// Ends of the process or the guest that no kind explains.
    pub crashes: u64,
    /// Requests without an answer.
    pub hangs: u64,
    /// Commits that were answered and not there after a restart.
    pub commits_lost: u64,
    /// Starts of the server's process after the first.
    pub server_restarts: u64,
    /// Of these, those by errors that landed outside of domains. Processes that the supervisor has
    /// ended because of such an error are in `untagged.replaced`.
    pub untagged_deaths: u64,
    /// What became of errors outside of domains.
    pub untagged: Untagged,
    /// Errors that were to be made.
    pub errors_planned: u64,
    /// Errors of a kind that must be detected, and were not.
    pub undetected: u64,
    /// Kinds that the plan has often, and that were never made.
    pub kinds_never_made: Vec<String>,
    /// Complaints of the guest's kernel on its console that nobody has asked for.
    pub kernel_complaints: u64,
    /// The first of them, with the lines that follow.
    pub kernel_complaints_quoted: Vec<String>,
    /// Restarts that errors have cost and that no end of the server explains, and ends without one.
    pub restarts_unexplained: u64,
    /// Whether errors were made that end the server's process or the guest.
    pub restarts: bool,
    /// The kind of all errors, if not all kinds were made.
    pub only: Option<String>,
    /// Connections to the server.
    pub connections: usize,
    /// Restarts of the guest that no error has asked for.
    pub guest_restarts_unplanned: u64,
    /// Restarts of the guest that errors have asked for.
    pub guest_restarts_planned: u64,
    /// Of the unplanned ones, those before the driver was loaded, as the console tells.
    pub guest_boots_cut_short: u64,
    /// The guest's CPUs.
    pub vcpus: u32,
    /// `nested-tcg` or `direct`: how the guest was run.
    pub accelerator: String,
    /// Release of the guest's kernel.
    pub guest_kernel: String,
    /// `c` or `rust`.
    pub server: String,
    /// Requests sent.
    pub requests: u64,
    /// Most errors under way at once.
    pub most_errors_in_flight: u64,
    /// Errors planned whose point the request did not pass.
    pub not_reached: u64,
    /// Errors planned in requests that another error's restart cut off.
    pub cut_off: u64,
    /// Requests that failed in a process whose untagged memory had been damaged, before it ended.
    pub lost_in_damaged_process: u64,
    /// Users with wrong data of their own making, taken out of use.
    pub users_retired: u64,
    /// Failed requests that clients were told of.
    pub failures_answered: u64,
    /// Failed requests that the host counts.
    pub incidents_reported: u64,
    /// Of these, those that no request explains, or answers that no incident belongs to.
    pub incidents_unexplained: u64,
    /// How often the directory was compared.
    pub directories_compared: u64,
    /// Bytes of users' state that were compared.
    pub bytes_compared: u64,
    /// Time without the server's process.
    pub outage_server: Outage,
    /// Time without the guest.
    pub outage_guest: Outage,
    /// Seconds from the first request to the last.
    pub seconds: f64,
    /// What was not as promised; empty if all was.
    pub broken_promises: Vec<String>,
}

/// Where a run took place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Seed of the plan.
    pub seed: u64,
    /// The guest's CPUs.
    pub vcpus: u32,
    /// How the guest was run.
    pub accelerator: String,
    /// Release of its kernel.
    pub guest_kernel: String,
    /// The server.
    pub server: String,
    /// Whether errors were made that end the server's process or the guest.
    pub restarts: bool,
    /// The kind of all errors, if not all kinds were made.
    pub only: Option<String>,
    /// Connections to the server.
    pub connections: usize,
    /// Restarts of the guest that the host counts; nothing if it could not be asked.
    pub guest_restarts: Option<u64>,
}

impl Report {
    /// Puts the facts together.
    #[must_use]
    pub fn new(place: &Place, outcome: &Outcome) -> Self {
        let unplanned = place
            .guest_restarts
            .map(|restarts| restarts.saturating_sub(outcome.guest_restarts_planned));
        let mut broken_promises = outcome.broken_promises();
        match unplanned {
            Some(0) => {}
            Some(count) => broken_promises.push(format!("{count} restarts of the guest unplanned")),
            None => broken_promises.push("the host does not say how often it restarted".to_owned()),
        }
        Self {
            seed: place.seed,
            errors_injected: outcome.errors_injected,
            kinds: outcome.kinds.clone(),
            others_harmed: outcome.others_harmed,
            crashes: outcome.crashes,
            hangs: outcome.hangs,
            commits_lost: outcome.commits_lost,
            server_restarts: outcome.server_restarts,
            untagged_deaths: outcome.untagged_deaths,
            untagged: outcome.untagged,
            errors_planned: outcome.errors_planned,
            undetected: outcome.undetected,
            kinds_never_made: outcome.kinds_never_made.clone(),
            kernel_complaints: outcome.kernel_complaints,
            kernel_complaints_quoted: outcome.kernel_complaints_quoted.clone(),
            restarts_unexplained: outcome.restarts_unexplained,
            restarts: place.restarts,
            only: place.only.clone(),
            connections: place.connections,
            guest_restarts_unplanned: unplanned.unwrap_or(0),
            guest_restarts_planned: outcome.guest_restarts_planned,
            guest_boots_cut_short: outcome.guest_boots_cut_short,
            vcpus: place.vcpus,
            accelerator: place.accelerator.clone(),
            guest_kernel: place.guest_kernel.clone(),
            server: place.server.clone(),
            requests: outcome.requests,
            most_errors_in_flight: outcome.most_errors_in_flight,
            not_reached: outcome.not_reached,
            cut_off: outcome.cut_off,
            lost_in_damaged_process: outcome.lost_in_damaged_process,
            users_retired: outcome.users_retired,
            failures_answered: outcome.failures_answered,
            incidents_reported: outcome.incidents_reported,
            incidents_unexplained: outcome.incidents_unexplained,
            directories_compared: outcome.directories_compared,
            bytes_compared: outcome.bytes_compared,
            outage_server: outcome.outage_server,
            outage_guest: outcome.outage_guest,
            seconds: outcome.seconds,
            broken_promises,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(guest_restarts: Option<u64>) -> Place {
        Place {
            seed: 1,
            vcpus: 2,
            accelerator: "nested-tcg".to_owned(),
            guest_kernel: "6.1".to_owned(),
            server: "c".to_owned(),
            restarts: true,
            only: None,
            connections: 14,
            guest_restarts,
        }
    }

    #[test]
    fn the_report_has_the_promised_keys() {
        let outcome = Outcome {
            kinds: vec![KindOutcome::default()],
            ..Outcome::default()
        };
        let report = Report::new(&place(Some(0)), &outcome);
        assert_eq!(report.broken_promises, [""; 0]);
        let value = serde_json::to_value(report).unwrap();
        for key in [
            "seed",
            "errors_injected",
            "kinds",
            "others_harmed",
            "crashes",
            "hangs",
            "commits_lost",
            "server_restarts",
            "untagged_deaths",
            "guest_restarts_unplanned",
        ] {
            assert!(value.get(key).is_some(), "{key}");
        }
        for key in [
            "kind",
            "injected",
            "recovered_right",
            "recovered_wrong_answer",
            "request_lost",
            "others_harmed",
            "crash",
            "hang",
        ] {
            assert!(value["kinds"][0].get(key).is_some(), "{key}");
        }
        for key in ["aimed", "killed", "caught", "replaced", "outage"] {
            assert!(value["untagged"].get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn a_restart_that_nobody_asked_for_breaks_a_promise() {
        let outcome = Outcome {
            guest_restarts_planned: 1,
            ..Outcome::default()
        };
        let report = Report::new(&place(Some(3)), &outcome);
        assert_eq!(report.guest_restarts_unplanned, 2);
        assert_eq!(report.broken_promises.len(), 1);
        assert_eq!(Report::new(&place(None), &outcome).broken_promises.len(), 1);
    }
}
