//! Counts errors of the guest and logs each kind once.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Counts of events by their kind. A kind is logged when it is first seen and only counted from
/// then on, so that a hostile guest cannot fill the host's log.
#[derive(Debug, Default)]
pub struct Tally {
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Tally {
    /// Counts one event. `kind` is a sentence about the guest without a full stop, such as
    /// "the driver wrote to a read-only register"; `source` names the device in the log. True if it
    /// is the first of its kind.
    pub fn add(&self, source: &str, kind: &'static str) -> bool {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(kind).or_insert(0);
        *count = count.saturating_add(1);
        let first = *count == 1;
        if first {
            log::warn!("{source}: {kind} (logged once, counted from now on)");
        }
        first
    }

    /// The kinds seen so far with their counts, in alphabetic order.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(&kind, &count)| (kind, count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn every_event_is_counted_under_its_kind() {
        let tally = Tally::default();
        assert!(tally.add("device", "b"));
        assert!(tally.add("device", "a"));
        assert!(!tally.add("device", "b"));
        assert_eq!(tally.counts(), [("a", 1), ("b", 2)]);
    }
}
