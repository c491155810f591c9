//! What one boot of the guest measures. The host sends it over the guest's console.

use serde::{Deserialize, Serialize};

use crate::guest::FILLED;

/// Frames in the driver's pool.
const POOL: u32 = 2048;

/// Pages of the window for each block of the domain with many: its own, and a quarter by which the domain may grow ahead.
const BLOCK_PAGES: u32 = 1280;

/// One boot of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) parts: Vec<Part>,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u32,
    /// Size of the window, in MiB.
    pub(crate) window_mib: u32,
    pub(crate) pool: u32,
    /// Requests that write to 64 pages; smaller ones are repeated more often.
    pub(crate) rounds: u32,
    /// Whether a plugin counts by function: then each measurement is made once, so that it counts each once.
    pub(crate) profile: bool,
}

/// Some measurements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Part {
    /// The rows that [`crate::baseline`] compares.
    Main,
    /// Requests that succeed, and the key-value tables.
    Requests,
    /// Requests that fail, and what others notice of them.
    Errors,
    /// Suspended requests beside the one that is measured.
    InFlight,
    /// Servers over loopback TCP.
    Servers,
    /// Open domains beside the one that is measured.
    Domains(Vec<u32>),
    /// Flushes and interrupts by the number of threads.
    Steps,
}

impl Plan {
    pub(crate) fn new(parts: impl Into<Vec<Part>>, rounds: u32) -> Self {
        Self {
            parts: parts.into(),
            vcpus: 1,
            memory_mib: 512,
            window_mib: 64,
            pool: POOL,
            rounds,
            profile: false,
        }
    }

    /// A boot that opens as many domains as the largest of `counts`. Each takes four pages of the window, of which it
    /// writes one, and less than 1 KiB of the guest's memory: a mapping, a lock, and what driver and library know of it. One
    /// more has many pages.
    pub(crate) fn domains(counts: Vec<u32>, rounds: u32) -> Self {
        let most = counts.iter().copied().max().unwrap_or(1);
        let [blocks, _] = FILLED;
        let filled = blocks as u32 * BLOCK_PAGES;
        Self {
            memory_mib: 512 + most / 1024,
            window_mib: 64 + most.div_ceil(64) + filled.div_ceil(256),
            ..Self::new([Part::Domains(counts)], rounds)
        }
    }

    pub(crate) fn vcpus(self, vcpus: u32) -> Self {
        Self { vcpus, ..self }
    }

    /// MiB that the KVM host needs, with what it runs itself.
    pub(crate) fn host_memory_mib(&self) -> u32 {
        1024 + self.memory_mib + self.window_mib
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_survives_the_console() {
        let plan = Plan::domains(vec![1, 1000], 50);
        let line = serde_json::to_string(&plan).unwrap();
        assert!(line.len() < 4096, "a terminal's line");
        assert_eq!(serde_json::from_str::<Plan>(&line).unwrap(), plan);
    }

    #[test]
    fn a_window_has_room_for_all_domains() {
        let plan = Plan::domains(vec![1, 100_000], 50);
        let frames = u64::from(plan.window_mib) * 256;
        assert!(frames > 4 * 100_000 + 2 * u64::from(plan.pool));
    }
}
