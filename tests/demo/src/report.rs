//! `report.json`: the results for programs.

use serde::{Deserialize, Serialize};
use vmsrs_ledger::load::outcome::Outcome;

/// The results of the demonstration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// `nested` or `direct`: how the guests were run.
    pub accelerator: String,
    /// Release of the guest's kernel.
    pub guest_kernel: String,
    /// Users.
    pub users: usize,
    /// Requests of the load.
    pub requests: u64,
    /// How many of them reached a bug.
    pub fatal_requests: u64,
    /// How many of those were undone completely.
    pub recovered: u64,
    /// Requests that reached no bug and failed or had a wrong answer.
    pub innocent_requests_failed: u64,
    /// Bytes in which users' state and the directory differ from the model.
    pub innocent_bytes_changed: u64,
    /// 1 if another process served at the end.
    pub server_restarts: u64,
    /// 1 if the guest rebooted.
    pub guest_restarts: u64,
    /// Per kind of bug.
    pub kinds: Vec<KindReport>,
    /// The same load without VMSRS.
    pub baseline: Baseline,
}

/// One kind of bug.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindReport {
    /// Its name.
    pub kind: String,
    /// Requests that reached it.
    pub count: u64,
    /// Those that were undone completely.
    pub recovered: u64,
    /// What detected it.
    pub detected_by: String,
    /// Nanoseconds in the guest from the detection to the end of the restoration: the median.
    pub recovery_ns_p50: Option<u64>,
}

/// The server without VMSRS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    /// The request at which it died; null if it did not.
    pub died_at_request: Option<u64>,
}

impl Report {
    /// Combines the two outcomes.
    pub fn new(
        accelerator: impl Into<String>,
        guest_kernel: impl Into<String>,
        baseline: &Outcome,
        protected: &Outcome,
    ) -> Self {
        let kinds = protected.kinds.iter().map(|kind| KindReport {
            kind: kind.kind.clone(),
            count: kind.count,
            recovered: kind.recovered,
            detected_by: kind.detected_by.clone(),
            recovery_ns_p50: kind.recovery_ns_p50,
        });
        Self {
            accelerator: accelerator.into(),
            guest_kernel: guest_kernel.into(),
            users: protected.users,
            requests: protected.requests,
            fatal_requests: protected.fatal_requests,
            recovered: protected.recovered,
            innocent_requests_failed: protected.ordinary_failed(),
            innocent_bytes_changed: protected.innocent_bytes_changed,
            server_restarts: protected.server_restarts,
            guest_restarts: protected.guest_restarts,
            kinds: kinds.collect(),
            baseline: Baseline {
                died_at_request: baseline.died.as_ref().map(|death| death.at_request),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_has_exactly_the_promised_keys() {
        let outcome = Outcome::default();
        let report = Report::new("nested", "6.1.0", &outcome, &outcome);
        let value = serde_json::to_value(report).unwrap();
        let mut keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        assert_eq!(
            keys.join(" "),
            "accelerator baseline fatal_requests guest_kernel guest_restarts \
             innocent_bytes_changed innocent_requests_failed kinds recovered requests \
             server_restarts users"
        );
    }
}
