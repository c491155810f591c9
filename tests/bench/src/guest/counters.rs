//! What the guest's kernel counts: TLB flushes and system calls by its trace events, interrupts between CPUs.
//!
//! Trace events cost instructions wherever they are hit. So flushes are counted in a pass of their own, and the events are off
//! while time is measured.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::sample::{Kernel, Memory};

const TRACING: &str = "/sys/kernel/tracing";

/// Counts hits by why the TLB was flushed.
const FLUSHES: Histogram = Histogram {
    event: "tlb/tlb_flush",
    key: "reason",
};
/// Counts hits by process.
const SYSTEM_CALLS: Histogram = Histogram {
    event: "raw_syscalls/sys_enter",
    key: "common_pid",
};

/// `TLB_REMOTE_SHOOTDOWN` of the kernel's `enum tlb_flush_reason`: a flush that another CPU asked for.
const REMOTE: u64 = 1;
/// `TLB_LOCAL_SHOOTDOWN` and `TLB_LOCAL_MM_SHOOTDOWN`.
const LOCAL: [u64; 2] = [2, 3];

/// The counters of an event.
struct Histogram {
    event: &'static str,
    key: &'static str,
}

impl Histogram {
    fn trigger(&self, off: &str) -> Result<()> {
        let path = Path::new(TRACING)
            .join("events")
            .join(self.event)
            .join("trigger");
        let text = format!("{off}hist:keys={}:size=512", self.key);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// Hits by key.
    fn read(&self) -> Result<Vec<(u64, u64)>> {
        let path = Path::new(TRACING)
            .join("events")
            .join(self.event)
            .join("hist");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(hits(&text))
    }
}

/// Keys and hits in the text of a histogram.
fn hits(text: &str) -> Vec<(u64, u64)> {
    let lines = text.lines().filter_map(|line| {
        let (key, rest) = line.trim().strip_prefix('{')?.split_once('}')?;
        let key = key.split_once(':')?.1.trim().parse().ok()?;
        let hits = rest.split_once("hitcount:")?.1;
        let hits = hits.split_whitespace().next()?.parse().ok()?;
        Some((key, hits))
    });
    lines.collect()
}

/// What has been counted at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    local_flushes: u64,
    remote_flushes: u64,
    ipis: u64,
    system_calls: u64,
}

impl Counts {
    /// For each of `rounds`.
    pub(super) fn each(self, rounds: u32) -> Kernel {
        let each = |count: u64| count as f64 / f64::from(rounds);
        Kernel {
            local_flushes: each(self.local_flushes),
            remote_flushes: each(self.remote_flushes),
            ipis: each(self.ipis),
            system_calls: each(self.system_calls),
        }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            local_flushes: self.local_flushes + other.local_flushes,
            remote_flushes: self.remote_flushes + other.remote_flushes,
            ipis: self.ipis + other.ipis,
            system_calls: self.system_calls + other.system_calls,
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            local_flushes: self.local_flushes.saturating_sub(other.local_flushes),
            remote_flushes: self.remote_flushes.saturating_sub(other.remote_flushes),
            ipis: self.ipis.saturating_sub(other.ipis),
            system_calls: self.system_calls.saturating_sub(other.system_calls),
        }
    }
}

/// Counts while it lives.
pub(super) struct Counting {
    /// What reading the counters once adds to them.
    reading: Counts,
}

impl Counting {
    pub(super) fn start() -> Result<Self> {
        if !Path::new(TRACING).join("events").is_dir() {
            let mounted = Command::new("mount")
                .args(["-t", "tracefs", "none", TRACING])
                .status();
            ensure!(
                mounted.is_ok_and(|status| status.success()),
                "cannot mount {TRACING}"
            );
        }
        let mut counting = Self {
            reading: Counts::default(),
        };
        FLUSHES.trigger("")?;
        SYSTEM_CALLS.trigger("")?;
        let first = counting.now()?;
        counting.reading = counting.now()?.minus(first);
        Ok(counting)
    }

    /// What was counted between two moments, without what reading the counters adds.
    pub(super) fn between(&self, from: Counts, to: Counts) -> Counts {
        to.minus(from).minus(self.reading)
    }

    /// What has been counted so far.
    pub(super) fn now(&self) -> Result<Counts> {
        let system_calls = SYSTEM_CALLS.read()?.iter().map(|(_, hits)| hits).sum();
        let flushes = FLUSHES.read()?;
        let of = |reasons: &[u64]| {
            let flushes = flushes.iter().filter(|(key, _)| reasons.contains(key));
            flushes.map(|(_, hits)| hits).sum()
        };
        let interrupts = fs::read_to_string("/proc/interrupts")?;
        Ok(Counts {
            local_flushes: of(&LOCAL),
            remote_flushes: of(&[REMOTE]),
            ipis: line_sum(&interrupts, "CAL:") + line_sum(&interrupts, "RES:"),
            system_calls,
        })
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // It fails when the event was not on.
        let _ = FLUSHES.trigger("!");
        let _ = SYSTEM_CALLS.trigger("!");
    }
}

/// The sum over all CPUs of a line of `/proc/interrupts`.
fn line_sum(interrupts: &str, name: &str) -> u64 {
    let line = interrupts
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(name));
    let numbers = line.unwrap_or_default().split_whitespace();
    numbers.map_while(|word| word.parse::<u64>().ok()).sum()
}

/// The guest's memory in use now.
pub(super) fn memory() -> Result<Memory> {
    let kib = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<i64>().ok()
    };
    let all = fs::read_to_string("/proc/meminfo")?;
    let own = fs::read_to_string("/proc/self/status")?;
    // What is free tells less: boot leaves pages that come back at some time.
    let of = |text, name| {
        kib(text, name)
            .map(|kib| kib * 1024)
            .with_context(|| format!("no {name} in /proc"))
    };
    Ok(Memory {
        driver: of(&all, "Slab:")? + of(&own, "RssFile:")?,
        process: of(&own, "RssAnon:")?,
        page_tables: of(&own, "VmPTE:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_are_read_from_a_histogram() {
        let text = "# event histogram\n#\n# trigger info: hist:keys=reason:vals=hitcount [active]\n#\n\n\
                    { reason:          0 } hitcount:          5\n\
                    { reason:          3 } hitcount:       1234\n\nTotals:\n    Hits: 1239\n";
        assert_eq!(hits(text), [(0, 5), (3, 1234)]);
    }

    #[test]
    fn interrupts_are_summed_over_cpus() {
        let text = "            CPU0       CPU1\n  0:  9  9 timer\n\
                    CAL:         10         20   Function call interrupts\n";
        assert_eq!(line_sum(text, "CAL:"), 30);
        assert_eq!(line_sum(text, "RES:"), 0);
    }

    #[test]
    fn reading_the_counters_is_not_counted() {
        let of = |local_flushes, system_calls| Counts {
            local_flushes,
            system_calls,
            ..Counts::default()
        };
        let counting = Counting { reading: of(0, 9) };
        let kernel = counting.between(of(1, 100), of(7, 113)).each(2);
        assert_eq!((kernel.local_flushes, kernel.system_calls), (3.0, 2.0));
        // Nothing was switched on.
        std::mem::forget(counting);
    }
}
