//! Progress of a run.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmsrs_report::steps::Count;

/// Counts of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Errors made.
    pub injected: u64,
    /// Errors in total.
    pub total: u64,
    /// Errors that cost only their own request.
    pub lost: u64,
    /// Others harmed.
    pub harmed: u64,
    /// Restarts of the server.
    pub restarts: u64,
    /// Requests.
    pub requests: u64,
}

impl Progress {
    /// How it is shown, `elapsed` after the first request: with the rate of errors and the estimated time left.
    #[must_use]
    pub fn count(&self, elapsed: Duration) -> Count {
        let rate = self.injected as f64 / elapsed.as_secs_f64().max(0.001);
        let left = self.total.saturating_sub(self.injected) as f64;
        let left = match self.injected {
            0 => "time left unknown".to_owned(),
            _ => format!("{:.0} min left", (left / rate / 60.0).ceil()),
        };
        Count {
            done: self.injected,
            total: self.total,
            words: format!(
                "errors, {} requests lost, {} others harmed, {} restarts; {rate:.1} a second, {left}",
                self.lost, self.harmed, self.restarts
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_has_a_rate_and_the_time_left() {
        let mut progress = Progress {
            total: 10_000,
            ..Progress::default()
        };
        let words = |progress: &Progress, seconds| {
            let elapsed = Duration::from_secs(seconds);
            progress.count(elapsed).words
        };
        assert!(words(&progress, 9).ends_with("time left unknown"));
        progress.injected = 400;
        let words = words(&progress, 100);
        assert!(words.ends_with("4.0 a second, 40 min left"), "{words}");
    }
}
