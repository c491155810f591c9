//! Failures that clients were told of, matched with the incidents that the host counts: one for each.

use std::collections::BTreeSet;

use vmsrs_ledger::reply::Failure;

/// The host also counts stopped writes that failed no request.
const SEALED_WRITE: &str = "sealed write";

/// The failures that clients were told of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Failures {
    /// Incidents named in answers.
    answered: BTreeSet<u64>,
    /// Requests that may have failed without a reliable answer.
    uncertain: u64,
}

impl Failures {
    /// Counts an answer with a failure. Without a device there is no incident; the host's own incidents, of stopped
    /// writes, are not counted.
    pub(crate) fn answered(&mut self, failure: &Failure) {
        if !failure.incident.is_multiple_of(2) && failure.kind != SEALED_WRITE {
            self.answered.insert(failure.incident);
        }
    }

    /// Counts a request with an error that had no answer, or the answer of a damaged process.
    pub(crate) fn uncertain(&mut self) {
        self.uncertain += 1;
    }

    /// Answers with a failure, each with its own incident.
    pub(crate) fn number(&self) -> u64 {
        self.answered.len() as u64
    }

    /// Requests that may have failed without a reliable answer.
    pub(crate) fn unanswered(&self) -> u64 {
        self.uncertain
    }

    /// The number of `reported` incidents without a failed request, or of answers without an incident. Up to `lost`
    /// reports were in transit when a guest went down.
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
    fn incident_without_failure_is_unexplained() {
        let mut failures = failures(&[1, 3]);
        assert_eq!(failures.unexplained(2, 0), 0);
        assert_eq!(failures.unexplained(3, 0), 1);
        failures.uncertain();
        assert_eq!(failures.unexplained(3, 0), 0);
        assert_eq!(failures.unexplained(4, 0), 1);
    }

    #[test]
    fn failure_without_incident_is_unexplained() {
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
    fn failures_with_the_same_incident_count_once() {
        assert_eq!(failures(&[1, 1, 3]).unexplained(3, 0), 1);
    }
}
