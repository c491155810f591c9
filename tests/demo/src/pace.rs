//! How quickly ordinary requests are answered: their latencies, and how many are answered over time.
//!
//! Both take the same memory however many requests there are.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Length of an interval of the time line.
pub const INTERVAL: Duration = Duration::from_millis(250);

/// Intervals of the time line: half an hour. What comes later is counted in the last one.
const INTERVALS: usize = 7200;

/// Latencies are kept to this many decimal digits.
const DIGITS: u8 = 2;

/// What takes longer counts as this long.
const LONGEST: Duration = Duration::from_secs(3600);

/// Takes down when requests were sent and answered; shared by the connections.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// When the first request is sent.
    start: OnceLock<Instant>,
    latencies: Mutex<Histogram<u64>>,
    timeline: Vec<AtomicU64>,
}

/// What a [`Recorder`] has taken down.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// Latencies in nanoseconds with the number of requests that had each, in ascending order.
    pub latencies: Vec<(u64, u64)>,
    /// Requests answered in each [`INTERVAL`] since the first one was sent.
    pub timeline: Vec<u64>,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(LONGEST.as_nanos() as u64, DIGITS)
        .expect("two digits and an hour are in its range")
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self {
            start: OnceLock::new(),
            latencies: Mutex::new(histogram()),
            timeline: (0..INTERVALS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// When the first request is sent: now, unless that was told before.
    pub(crate) fn start(&self) -> Instant {
        *self.start.get_or_init(Instant::now)
    }

    /// A request that was sent at `sent` has been answered now.
    pub(crate) fn answered(&self, sent: Instant) {
        self.record(sent.elapsed(), self.start().elapsed());
    }

    fn record(&self, latency: Duration, at: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let mut latencies = self
            .latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        latencies.saturating_record(nanoseconds);
        drop(latencies);
        let interval = at.as_nanos() / INTERVAL.as_nanos();
        let interval = usize::try_from(interval).map_or(INTERVALS - 1, |at| at.min(INTERVALS - 1));
        self.timeline[interval].fetch_add(1, Relaxed);
    }

    pub(crate) fn pace(&self) -> Pace {
        let latencies = self
            .latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut timeline: Vec<u64> = self.timeline.iter().map(|at| at.load(Relaxed)).collect();
        let used = timeline.iter().rposition(|&requests| requests > 0);
        timeline.truncate(used.map_or(0, |last| last + 1));
        Pace {
            latencies: latencies
                .iter_recorded()
                .map(|at| (at.value_iterated_to(), at.count_at_value()))
                .collect(),
            timeline,
        }
    }
}

impl Pace {
    /// Requests answered.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.latencies.iter().map(|(_, count)| count).sum()
    }

    /// The latency in nanoseconds that `percent` of the requests do not exceed, by the nearest rank;
    /// `None` without requests. 100 gives the longest.
    #[must_use]
    pub fn percentile_ns(&self, percent: u64) -> Option<u64> {
        let rank = (self.requests() * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let at_rank = self.latencies.iter().find(|(_, count)| {
            seen += count;
            seen >= rank
        });
        at_rank.map(|(latency, _)| *latency)
    }

    /// The requests of several runs as if they were one; their time lines are added up.
    #[must_use]
    pub fn merged<'a>(runs: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut latencies = std::collections::BTreeMap::<u64, u64>::new();
        let mut timeline = Vec::new();
        for run in runs {
            for (latency, count) in &run.latencies {
                *latencies.entry(*latency).or_default() += count;
            }
            if timeline.len() < run.timeline.len() {
                timeline.resize(run.timeline.len(), 0);
            }
            for (sum, requests) in timeline.iter_mut().zip(&run.timeline) {
                *sum += requests;
            }
        }
        Self {
            latencies: latencies.into_iter().collect(),
            timeline,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::percentile::percentile;
    use proptest::prelude::*;

    fn recorder(requests: &[(u64, u64)]) -> Recorder {
        let recorder = Recorder::new();
        for &(latency, at) in requests {
            recorder.record(Duration::from_nanos(latency), Duration::from_millis(at));
        }
        recorder
    }

    #[test]
    fn requests_are_counted_in_the_interval_in_which_they_are_answered() {
        let pace = recorder(&[(5, 0), (5, 249), (9, 250), (7, 1100)]).pace();
        assert_eq!(pace.timeline, [2, 1, 0, 0, 1]);
        assert_eq!(pace.latencies, [(5, 2), (7, 1), (9, 1)]);
        assert_eq!(pace.requests(), 4);
    }

    #[test]
    fn what_comes_very_late_is_counted_in_the_last_interval() {
        let pace = recorder(&[(u64::MAX, u64::MAX / 2)]).pace();
        assert_eq!(pace.timeline.len(), INTERVALS);
        assert_eq!(pace.requests(), 1);
        let hour = LONGEST.as_nanos() as u64;
        assert!(pace.percentile_ns(50).unwrap().abs_diff(hour) <= hour / 50);
    }

    #[test]
    fn no_requests_have_no_latency() {
        assert_eq!(Pace::default().percentile_ns(50), None);
        assert_eq!(recorder(&[]).pace(), Pace::default());
    }

    #[test]
    fn merged_runs_have_the_requests_of_all() {
        let (one, two) = (
            recorder(&[(5, 0), (8, 600)]).pace(),
            recorder(&[(5, 0)]).pace(),
        );
        let both = Pace::merged([&one, &two]);
        assert_eq!(both.latencies, [(5, 2), (8, 1)]);
        assert_eq!(both.timeline, [2, 0, 1]);
    }

    proptest! {
        #[test]
        fn percentiles_are_within_a_hundredth_of_the_exact_ones(
            latencies in prop::collection::vec(1u64..10_000_000_000, 1..300),
            percent in 1usize..=100,
        ) {
            let requests: Vec<_> = latencies.iter().map(|&latency| (latency, 0)).collect();
            let exact = percentile(&latencies, percent).unwrap();
            let found = recorder(&requests).pace().percentile_ns(percent as u64).unwrap();
            prop_assert!(found.abs_diff(exact) <= exact / 100 + 1, "{found} for {exact}");
        }
    }
}
