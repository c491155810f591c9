//! `report.json`.

use serde::{Deserialize, Serialize};

use crate::outcome::Outcome;

/// What the campaign found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where it took place.
    #[serde(flatten)]
    pub place: Place,
    /// What the run found.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Restarts of the guest that no error has caused on purpose.
    pub guest_restarts_unplanned: u64,
    /// What was not as promised; empty if all was.
    pub broken_promises: Vec<String>,
}

/// Where a run takes place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Seed of the plan.
    pub seed: u64,
    /// The guest's CPUs.
    pub vcpus: u32,
    /// `nested-tcg` or `direct`: how the guest was run.
    pub accelerator: String,
    /// Release of the guest's kernel.
    pub guest_kernel: String,
    /// `c` or `rust`.
    pub server: String,
    /// Whether errors were made that end the server's process or the guest.
    pub restarts: bool,
    /// The kinds of all errors; none if all kinds were made.
    pub only: Vec<String>,
    /// Connections to the server.
    pub connections: usize,
    /// Restarts of the guest that the host counts; `None` if the host does not answer.
    pub guest_restarts: Option<u64>,
}

impl Report {
    /// Puts the facts together.
    #[must_use]
    pub fn new(place: Place, outcome: Outcome) -> Self {
        let unplanned = place
            .guest_restarts
            .map(|restarts| restarts.saturating_sub(outcome.guest_restarts_planned));
        let mut broken_promises = outcome.broken_promises();
        match unplanned {
            Some(0) => {}
            Some(count) => broken_promises.push(format!("{count} unplanned restarts of the guest")),
            None => {
                broken_promises.push("the host did not report its restarts of the guest".to_owned())
            }
        }
        Self {
            place,
            outcome,
            guest_restarts_unplanned: unplanned.unwrap_or(0),
            broken_promises,
        }
    }

    /// Whether all promises were kept.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.broken_promises.is_empty()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::outcome::KindOutcome;

    pub(crate) fn place(guest_restarts: Option<u64>) -> Place {
        Place {
            seed: 1,
            vcpus: 2,
            accelerator: "nested-tcg".to_owned(),
            guest_kernel: "6.1".to_owned(),
            server: "c".to_owned(),
            restarts: true,
            only: Vec::new(),
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
        let report = Report::new(place(Some(0)), outcome);
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
    fn unplanned_restart_breaks_a_promise() {
        let outcome = Outcome {
            guest_restarts_planned: 1,
            ..Outcome::default()
        };
        let report = Report::new(place(Some(3)), outcome.clone());
        assert_eq!(report.guest_restarts_unplanned, 2);
        assert_eq!(report.broken_promises.len(), 1);
        assert_eq!(Report::new(place(None), outcome).broken_promises.len(), 1);
    }
}
