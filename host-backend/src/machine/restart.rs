//! Whether, and how often, a guest that goes down is restarted.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use clap::ValueEnum;

/// The period over which restarts are counted.
pub(crate) const PERIOD: Duration = Duration::from_secs(60);

/// What to do when the guest resets itself or dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnReboot {
    /// Restart it, with the vault as it is
    Restart,
    /// End the VM
    Exit,
}

/// A limit on restarts, for a guest that goes down at every boot.
#[derive(Debug)]
pub(crate) struct RestartBudget {
    limit: u32,
    /// The restarts of the last [`PERIOD`].
    recent: VecDeque<Instant>,
}

impl RestartBudget {
    /// At most `limit` restarts in any [`PERIOD`].
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            limit,
            recent: VecDeque::new(),
        }
    }

    /// Uses a restart at the time `now`; false if none is left.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.recent
            .retain(|&past| now.saturating_duration_since(past) < PERIOD);
        let left = self.recent.len() < self.limit as usize;
        if left {
            self.recent.push_back(now);
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_are_limited_in_every_period() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut budget = RestartBudget::new(2);
        assert!(budget.take(at(0)));
        assert!(budget.take(at(50)));
        assert!(!budget.take(at(59)));
        assert!(budget.take(at(60)));
        assert!(!budget.take(at(109)));
        assert!(budget.take(at(110)));
    }

    #[test]
    fn a_limit_of_zero_allows_none() {
        assert!(!RestartBudget::new(0).take(Instant::now()));
    }
}
