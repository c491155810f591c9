//! What went through the network card.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::tally::Tally;

/// Counters of a network card, raised by its thread and read by anybody.
#[derive(Debug, Default)]
pub struct NetCounters {
    pub(super) received: AtomicU64,
    pub(super) received_dropped: AtomicU64,
    pub(super) transmitted: AtomicU64,
    pub(super) transmitted_dropped: AtomicU64,
    /// What the driver did wrong.
    pub(super) tally: Tally,
}

impl NetCounters {
    /// The counts at this moment.
    pub fn snapshot(&self) -> NetCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NetCounts {
            received: load(&self.received),
            received_dropped: load(&self.received_dropped),
            transmitted: load(&self.transmitted),
            transmitted_dropped: load(&self.transmitted_dropped),
        }
    }

    /// What the driver did wrong, by kind.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }
}

/// A copy of a network card's counters. Frames, seen from the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetCounts {
    /// Frames given to the guest.
    pub received: u64,
    /// Frames for the guest that did not fit into its buffers.
    pub received_dropped: u64,
    /// Frames from the guest given to the tap interface.
    pub transmitted: u64,
    /// Frames from the guest that were malformed or that the tap interface did not take.
    pub transmitted_dropped: u64,
}
