//! All incidents since the engine was made, as numbers: how many of which kind ended how, and how long recovery took.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How an incident ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IncidentOutcome {
    /// The request failed, its writes were dropped, its process goes on.
    Recovered,
    /// The request ended with its thread, its process or the whole guest, its writes were dropped.
    Discarded,
    /// The write did not happen.
    Stopped,
    /// The page has its right content again, from the mirror.
    Repaired,
    /// The access did not happen, and the frame gets new memory.
    Replaced,
    /// The content of the page is lost.
    Lost,
}

impl IncidentOutcome {
    /// Its name in JSON, metrics and text.
    pub fn name(self) -> &'static str {
        match self {
            Self::Recovered => "recovered",
            Self::Discarded => "discarded",
            Self::Stopped => "stopped",
            Self::Repaired => "repaired",
            Self::Replaced => "replaced",
            Self::Lost => "lost",
        }
    }
}

/// Incidents by kind and outcome. Bounded: kinds are names of this program.
#[derive(Debug, Default)]
pub(crate) struct IncidentCounts(BTreeMap<(&'static str, IncidentOutcome), u64>);

impl IncidentCounts {
    pub(crate) fn add(&mut self, kind: &'static str, outcome: IncidentOutcome) {
        let count = self.0.entry((kind, outcome)).or_default();
        *count = count.saturating_add(1);
    }

    /// Those that there were, by the name of their kind.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, IncidentOutcome, u64)> {
        self.0
            .iter()
            .map(|(&(kind, outcome), &count)| (kind, outcome, count))
    }
}

/// Upper bounds of [`RecoveryTimes`], in nanoseconds: a failure takes tens of microseconds, more when many pages are dropped or
/// when its thread waits for a CPU.
pub const RECOVERY_BOUNDS: [u64; 12] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    5_000_000,
    25_000_000,
    100_000_000,
    500_000_000,
    2_500_000_000,
];

/// How long failed requests took from the detection of the error until their drafts were dropped, as the driver said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryTimes {
    /// Sum, in nanoseconds.
    pub sum_ns: u64,
    /// Failed requests within each of [`RECOVERY_BOUNDS`] and not within the one before, then those beyond the last.
    pub counts: [u64; RECOVERY_BOUNDS.len() + 1],
}

impl RecoveryTimes {
    /// Adds a failed request. The guest's value is not trusted: the sum stops at its largest value.
    pub(crate) fn add(&mut self, nanoseconds: u64) {
        let place = RECOVERY_BOUNDS.partition_point(|&bound| bound < nanoseconds);
        self.counts[place] = self.counts[place].saturating_add(1);
        self.sum_ns = self.sum_ns.saturating_add(nanoseconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_in_json() {
        use IncidentOutcome::*;
        for outcome in [Recovered, Discarded, Stopped, Repaired, Replaced, Lost] {
            let json = serde_json::to_value(outcome).unwrap();
            assert_eq!(json, outcome.name());
        }
    }

    #[test]
    fn a_time_counts_for_the_first_bound_that_it_is_within() {
        let mut times = RecoveryTimes::default();
        for nanoseconds in [0, 10_000, 10_001, 2_500_000_000, 2_500_000_001] {
            times.add(nanoseconds);
        }
        assert_eq!(times.counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        times.add(u64::MAX);
        assert_eq!((times.counts[12], times.sum_ns), (2, u64::MAX));
    }
}
