//! The domains of failed requests, whose sealed pages are to be checked soon.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

/// A domain is checked at most once in this time because requests in it failed, however large it is and
/// however often they do.
const PERIOD: Duration = Duration::from_secs(60);

/// Maximum number of domains that are checked in a period; the scrubber's pass reaches others.
const DOMAINS_MAX: usize = 4096;

/// An app, and a domain in it.
pub(crate) type DomainOf = (u32, u32);

/// The domains that wait for their check.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    waiting: VecDeque<DomainOf>,
    /// Domains that were added in this period, and when; oldest first.
    recent: VecDeque<(Duration, DomainOf)>,
    /// The domains of `recent`.
    known: HashSet<DomainOf>,
}

impl Suspects {
    /// Adds a domain in which a request has failed, unless it was added less than a period ago.
    pub(crate) fn add(&mut self, at: Duration, domain: DomainOf) {
        while let Some(&(since, oldest)) = self.recent.front()
            // When the clock was set back nothing is known about it.
            && !(since..since + PERIOD).contains(&at)
        {
            self.recent.pop_front();
            self.known.remove(&oldest);
        }
        if self.known.len() < DOMAINS_MAX && self.known.insert(domain) {
            self.recent.push_back((at, domain));
            self.waiting.push_back(domain);
        }
    }

    /// Takes the domain that waits longest.
    pub(crate) fn take(&mut self) -> Option<DomainOf> {
        self.waiting.pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1000);

    #[test]
    fn a_domain_is_checked_once_a_period() {
        let mut suspects = Suspects::default();
        let before_end = START + PERIOD - Duration::from_nanos(1);
        suspects.add(START, (0, 1));
        assert_eq!(suspects.take(), Some((0, 1)));
        suspects.add(START, (0, 1));
        suspects.add(before_end, (0, 1));
        suspects.add(before_end, (1, 1));
        assert_eq!((suspects.take(), suspects.take()), (Some((1, 1)), None));
        suspects.add(START + PERIOD, (1, 1));
        suspects.add(START + PERIOD, (0, 1));
        assert_eq!((suspects.take(), suspects.take()), (Some((0, 1)), None));
    }

    #[test]
    fn a_clock_that_is_set_back_delays_no_check() {
        let mut suspects = Suspects::default();
        suspects.add(START, (0, 1));
        assert!(suspects.take().is_some() && suspects.is_empty());
        suspects.add(START - Duration::from_secs(500), (0, 1));
        assert!(!suspects.is_empty());
    }

    #[test]
    fn the_checks_of_a_period_are_bounded() {
        let mut suspects = Suspects::default();
        for domain in 0..2 * DOMAINS_MAX as u32 {
            suspects.add(START, (0, domain));
        }
        assert_eq!(std::iter::from_fn(|| suspects.take()).count(), DOMAINS_MAX);
        suspects.add(START + PERIOD, (0, u32::MAX));
        assert_eq!(suspects.take(), Some((0, u32::MAX)));
    }
}
