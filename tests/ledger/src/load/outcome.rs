//! The results of a load.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use vmsrs_report::distribution::Distribution;

use super::pace::Pace;
use crate::bug::Bug;
use crate::reply::Failure;

/// Counts while the load runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Requests answered.
    pub done: u64,
    /// Requests in total.
    pub total: u64,
    /// Fatal requests sent.
    pub fatal: u64,
    /// Fatal requests after which everything was as before.
    pub recovered: u64,
    /// Ordinary requests that failed or got a wrong answer.
    pub innocent_failed: u64,
}

/// The result of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// `full`, `none` or `plain`, as the server says.
    pub protection: String,
    /// Users.
    pub users: usize,
    /// Connections.
    pub connections: usize,
    /// Requests sent, without those that set up and check.
    pub requests: u64,
    /// How many of them were fatal.
    pub fatal_requests: u64,
    /// Fatal requests that were answered with an error and left the user's state as it was.
    pub recovered: u64,
    /// Ordinary requests that failed.
    pub innocent_requests_failed: u64,
    /// Ordinary requests whose answer was not the model's.
    pub innocent_answers_wrong: u64,
    /// Numbers of incidents that hit ordinary requests; the first ones.
    pub innocent_incidents: Vec<u64>,
    /// Bytes in which the state of the users and the directory differs from the model.
    pub innocent_bytes_changed: u64,
    /// Bytes that were compared in the end.
    pub bytes_compared: u64,
    /// Connections that had to be restored.
    pub reconnects: u64,
    /// 1 if another process served at the end.
    pub server_restarts: u64,
    /// 1 if the server's machine had another boot ID at the end.
    pub guest_restarts: u64,
    /// The smallest number of other requests in flight when a fatal one was sent.
    pub others_in_flight_min: u64,
    /// The median of that number.
    pub others_in_flight_p50: u64,
    /// The request at which the server died, and of what.
    pub died: Option<Death>,
    /// Per kind of bug.
    pub kinds: Vec<BugOutcome>,
    /// The first things that were not as promised, in words.
    pub complaints: Vec<String>,
    /// Seconds from the first request of the load to the last.
    pub seconds: f64,
    /// How quickly ordinary requests were answered.
    pub pace: Pace,
}

/// The end of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Death {
    /// Number of the first unanswered request, from 1.
    pub at_request: u64,
    /// The bug that it reached, or the client's error.
    pub cause: String,
}

/// The results of one bug.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BugOutcome {
    /// Its name.
    pub kind: String,
    /// Requests that reached it.
    pub count: u64,
    /// Those after which everything was as before.
    pub recovered: u64,
    /// What detected it: several are separated by commas, the most frequent first.
    pub detected_by: String,
    /// Nanoseconds in the guest from the detection to the end of the restoration: the median.
    pub recovery_ns_p50: Option<u64>,
    /// The same for all but one in a hundred.
    pub recovery_ns_p99: Option<u64>,
    /// Nanoseconds, seen by the client, from sending the fatal request to the answer of the same thread to the next one:
    /// the median.
    pub served_again_ns_p50: Option<u64>,
    /// One of the answers.
    pub answer: String,
}

/// A record of the requests that reached one bug.
#[derive(Debug, Default)]
pub(crate) struct BugRecord {
    count: u64,
    recovered: u64,
    detectors: BTreeMap<String, u64>,
    recovery_ns: Distribution,
    served_again_ns: Distribution,
    answer: String,
}

impl BugRecord {
    pub(crate) fn sent(&mut self) {
        self.count += 1;
    }

    pub(crate) fn failed(&mut self, failure: &Failure) {
        let detector = failure.detector().to_owned();
        *self.detectors.entry(detector).or_default() += 1;
        self.recovery_ns.record(failure.recovery_ns);
        self.answer = format!(
            "ERR {} incident={} recovery_ns={}",
            failure.kind, failure.incident, failure.recovery_ns
        );
    }

    pub(crate) fn recovered(&mut self, served_again_ns: u64) {
        self.recovered += 1;
        self.served_again_ns.record(served_again_ns);
    }

    pub(crate) fn outcome(&self, bug: Bug) -> BugOutcome {
        let mut detectors: Vec<_> = self.detectors.iter().collect();
        detectors.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let detectors: Vec<&str> = detectors.iter().map(|(name, _)| name.as_str()).collect();
        BugOutcome {
            kind: bug.name().to_owned(),
            count: self.count,
            recovered: self.recovered,
            detected_by: detectors.join(", "),
            recovery_ns_p50: self.recovery_ns.median(),
            recovery_ns_p99: self.recovery_ns.percentile(99),
            served_again_ns_p50: self.served_again_ns.median(),
            answer: self.answer.clone(),
        }
    }
}

impl Outcome {
    /// Ordinary requests that failed or had a wrong answer.
    #[must_use]
    pub fn ordinary_failed(&self) -> u64 {
        self.innocent_requests_failed + self.innocent_answers_wrong
    }

    /// The broken promises; empty if all were kept.
    pub fn broken_promises(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let mut check = |kept: bool, words: String| {
            if !kept {
                broken.push(words);
            }
        };
        if let Some(death) = &self.died {
            check(
                false,
                format!(
                    "the server died at request {} ({})",
                    death.at_request, death.cause
                ),
            );
        }
        check(
            self.recovered == self.fatal_requests,
            format!(
                "{} of {} fatal requests were recovered",
                self.recovered, self.fatal_requests
            ),
        );
        let zero = [
            (self.innocent_requests_failed, "requests of others failed"),
            (self.innocent_answers_wrong, "answers were wrong"),
            (
                self.innocent_bytes_changed,
                "bytes of users' state were changed",
            ),
            (self.reconnects, "connections were lost"),
            (self.server_restarts, "restarts of the server"),
            (self.guest_restarts, "restarts of the guest"),
        ];
        for (count, what) in zero {
            check(count == 0, format!("{count} {what}"));
        }
        for kind in self.kinds.iter().filter(|_| self.fatal_requests > 0) {
            check(
                kind.count >= 2,
                format!("\"{}\" was tried only {} times", kind.kind, kind.count),
            );
        }
        broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_trouble_breaks_no_promise() {
        let mut outcome = Outcome {
            fatal_requests: 2,
            recovered: 2,
            ..Outcome::default()
        };
        assert!(outcome.broken_promises().is_empty());
        outcome.recovered = 1;
        outcome.innocent_bytes_changed = 3;
        assert_eq!(outcome.broken_promises().len(), 2);
    }

    #[test]
    fn the_most_frequent_detector_comes_first() {
        let failure = |kind: &str| Failure {
            kind: kind.to_owned(),
            incident: 1,
            recovery_ns: 5,
        };
        let mut record = BugRecord::default();
        for kind in ["abort", "memory", "memory"] {
            record.sent();
            record.failed(&failure(kind));
        }
        record.recovered(9);
        let outcome = record.outcome(Bug::Abort);
        assert_eq!(outcome.detected_by, "SIGSEGV, SIGABRT");
        assert_eq!((outcome.count, outcome.recovered), (3, 1));
        assert_eq!(outcome.recovery_ns_p50, Some(5));
    }
}
