//! How much memory a guest can have on this machine.

use std::fs;
use std::path::Path;

use crate::cgroup::{self, MemoryLimit};
use crate::size::Size;

/// What this machine has, and what this process may use of it.
pub(super) struct HostMemory {
    /// Memory and swap.
    pub(super) total: Size,
    /// That of the control groups of this process.
    pub(super) limit: Option<MemoryLimit>,
}

impl HostMemory {
    /// Reads it from the files below `root`; `None` if it is not known.
    pub(super) fn read(root: &Path) -> Option<Self> {
        let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
        let bytes = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some(kibibytes << 10)
        };
        let swap = bytes("SwapTotal:").unwrap_or(0);
        Some(Self {
            total: Size(bytes("MemTotal:")? + swap),
            limit: cgroup::memory_limit(root, swap),
        })
    }

    /// The limit, if it allows less than `wanted`.
    pub(super) fn limit_below(&self, wanted: Size) -> Option<&MemoryLimit> {
        self.limit.as_ref().filter(|limit| limit.bytes < wanted.0)
    }
}
