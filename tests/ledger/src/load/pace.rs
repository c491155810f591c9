//! How fast ordinary requests are answered: their latencies, and how many are answered over time.
//!
//! Both take the same memory however many requests there are.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmsrs_report::distribution::Distribution;

/// Length of an interval of the time line.
pub const INTERVAL: Duration = Duration::from_millis(50);

/// Intervals of the time line: half an hour. Later requests are counted in the last one.
const INTERVALS: usize = 36_000;

/// Records when requests are sent and answered; shared by the connections.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// When the first request is sent.
    start: OnceLock<Instant>,
    latencies: Mutex<Distribution>,
    timeline: Vec<AtomicU64>,
}

/// What a [`Recorder`] has recorded.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// Latencies in nanoseconds.
    pub latencies: Distribution,
    /// Requests answered in each [`INTERVAL`] since the first one was sent.
    pub timeline: Vec<u64>,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self {
            start: OnceLock::new(),
            latencies: Mutex::default(),
            timeline: (0..INTERVALS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// When the first request is sent: now, unless it was called before.
    pub(crate) fn start(&self) -> Instant {
        *self.start.get_or_init(Instant::now)
    }

    /// A request that was sent at `sent` has been answered now.
    pub(crate) fn answered(&self, sent: Instant) {
        self.record(sent.elapsed(), self.start().elapsed());
    }

    fn record(&self, latency: Duration, at: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let mut latencies = (self.latencies.lock()).unwrap_or_else(PoisonError::into_inner);
        latencies.record(nanoseconds);
        drop(latencies);
        let interval = at.as_nanos() / INTERVAL.as_nanos();
        let interval = usize::try_from(interval).map_or(INTERVALS - 1, |at| at.min(INTERVALS - 1));
        self.timeline[interval].fetch_add(1, Relaxed);
    }

    pub(crate) fn pace(&self) -> Pace {
        let latencies = (self.latencies.lock()).unwrap_or_else(PoisonError::into_inner);
        let mut timeline: Vec<u64> = self.timeline.iter().map(|at| at.load(Relaxed)).collect();
        let used = timeline.iter().rposition(|&requests| requests > 0);
        timeline.truncate(used.map_or(0, |last| last + 1));
        Pace {
            latencies: latencies.clone(),
            timeline,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(requests: &[(u64, u64)]) -> Pace {
        let recorder = Recorder::new();
        for &(latency, at) in requests {
            recorder.record(Duration::from_nanos(latency), Duration::from_millis(at));
        }
        recorder.pace()
    }

    #[test]
    fn requests_count_in_the_interval_of_their_answer() {
        let pace = pace(&[(5, 0), (5, 49), (9, 50), (7, 220)]);
        assert_eq!(pace.timeline, [2, 1, 0, 0, 1]);
        assert_eq!(format!("{:?}", pace.latencies), "{5: 2, 7: 1, 9: 1}");
    }

    #[test]
    fn very_late_requests_count_in_the_last_interval() {
        let pace = pace(&[(u64::MAX, u64::MAX / 2)]);
        assert_eq!(pace.timeline.len(), INTERVALS);
        assert_eq!(pace.latencies.count(), 1);
    }

    #[test]
    fn no_requests_have_no_pace() {
        assert_eq!(pace(&[]), Pace::default());
    }
}
