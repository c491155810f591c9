//! Failures that clients were told, held against the incidents that the host counts: one for each.

use std::collections::BTreeSet;

use vmsrs_ledger::reply::Failure;

/// The host counts stopped writes together, whether a request failed by one or not.
const SEALED_WRITE: &str = "sealed write";

/// What clients were told of requests that failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Failures {
    /// Incidents of those that were answered.
    answered: BTreeSet<u64>,
    /// Requests that have perhaps failed, and of which no answer tells that can be relied on.
    uncertain: u64,
}

impl Failures {
    /// A request was answered with a failure. Without a device there are no incidents; the host's own
    /// ones, of stopped writes, are not counted.
    pub(crate) fn answered(&mut self, failure: &Failure) {
        if !failure.incident.is_multiple_of(2) && failure.kind != SEALED_WRITE {
            self.answered.insert(failure.incident);
        }
    }

    /// A request with an error had no answer, or one from a process that may tell anything.
    pub(crate) fn uncertain(&mut self) {
        self.uncertain += 1;
    }

    /// Failures that were answered, each with an incident of its own.
    pub(crate) fn number(&self) -> u64 {
        self.answered.len() as u64
    }

    /// Requests that have perhaps failed without an answer.
    pub(crate) fn unanswered(&self) -> u64 {
        self.uncertain
    }

    /// How many of the `reported` incidents belong to no failed request, or how many answers to no
    /// incident. `lost` reports at most were under way when a guest went down.
    pub(crate) fn unexplained(&self, reported: u64, lost: u64) -> u64 {
        let too_many = reported.saturating_sub(self.number() + self.uncertain);
        let too_few = self.number().saturating_sub(reported + lost);
        too_many + too_few
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(incidents: &[u64]) -> Failures {
        let mut failures = Failures::default();
        for &incident in incidents {
            failures.answered(&Failure {
                kind: "memory".to_owned(),
                incident,
                recovery_ns: 1,
            });
        }
        failures
    }

    #[test]
    fn an_incident_of_a_request_that_was_answered_well_is_unexplained() {
        let mut failures = failures(&[1, 3]);
        assert_eq!(failures.unexplained(2, 0), 0);
        assert_eq!(failures.unexplained(3, 0), 1);
        failures.uncertain();
        assert_eq!(failures.unexplained(3, 0), 0);
        assert_eq!(failures.unexplained(4, 0), 1);
    }

    #[test]
    fn a_failure_without_an_incident_is_unexplained_unless_a_guest_took_it_along() {
        let mut failures = failures(&[1, 3, 5]);
        assert_eq!(failures.unexplained(1, 0), 2);
        assert_eq!(failures.unexplained(1, 2), 0);
        failures.uncertain();
        assert_eq!(failures.unexplained(1, 1), 1);
    }

    #[test]
    fn stopped_writes_are_not_compared() {
        let mut failures = failures(&[1, 2]);
        failures.answered(&Failure {
            kind: SEALED_WRITE.to_owned(),
            incident: 3,
            recovery_ns: 1,
        });
        assert_eq!((failures.number(), failures.unexplained(1, 0)), (1, 0));
    }

    #[test]
    fn two_failures_with_one_incident_are_one() {
        assert_eq!(failures(&[1, 1, 3]).unexplained(3, 0), 1);
    }
}
