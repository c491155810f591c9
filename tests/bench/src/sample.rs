//! One measurement.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum What {
    /// Nothing, for the cost of measuring itself.
    Nothing,
    /// An instruction that always exits to the host.
    Exit,
    /// The loop that measures [`What::Request`], with a call of its function in place of a request.
    Call,
    /// A request that reads a byte, or writes pages that no request has written for a while; without protection the same
    /// work alone.
    Request,
    /// A request that writes pages which every request writes; without protection the same work alone.
    Resident,
    /// A request that takes blocks of `count` bytes, writes them, and frees older ones; without protection the same with
    /// the C library's allocator.
    Blocks,
    /// A null write, the handler of its signal and the return from it, without VMSRS.
    Signal,
    /// From an error until the same thread runs its next request.
    Recovery,
    /// Requests of users while nobody's fails.
    Undisturbed,
    /// The same while every tenth request is another user's and fails.
    Disturbed,
    /// Operations on a key-value server's tables, without a network.
    KeyValue,
    /// A command that a server gets over loopback TCP: the CPU time of the server's threads.
    Server,
    /// Opening a domain and committing its first page, with `count` domains in the end.
    Opening,
    /// Committing `count` pages of one domain for the first time.
    Filling,
    /// A request with `count` domains open.
    Domains,
    /// A request with `count` others suspended.
    InFlight,
    /// A suspended request's next step, which suspends it again, with `count` of them.
    Step,
    /// `count` threads in step: all write, all commit, the host seals.
    Threads,
}

/// Which server, and with values of which size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerLoad {
    pub(crate) server: String,
    /// `plain` or `protected`.
    pub(crate) mode: String,
    pub(crate) value_bytes: usize,
}

/// A mean of many rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) what: What,
    /// Pages that the request writes; 0 for one that only reads.
    pub(crate) pages: usize,
    /// Percentage of the key-value server's operations that write.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) writes_percent: Option<u32>,
    /// Pages that the failed request has written, with those of the heap's own lists.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) dropped: Option<f64>,
    /// The error.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) error: Option<String>,
    /// Domains, requests, threads, or bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) count: Option<u32>,
    /// Blocks that a request takes and frees.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) blocks: Option<u32>,
    pub(crate) protected: bool,
    pub(crate) rounds: u32,
    /// One round, by the guest's clock.
    pub(crate) nanoseconds: f64,
    /// What 99 % of the rounds do not exceed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) p99: Option<f64>,
    /// The parts of the request.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) parts: Option<Parts>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) server: Option<ServerLoad>,
    /// What the guest's kernel counted for a round; of threads, for all three steps.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) kernel: Option<Kernel>,
    /// The steps of threads.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) steps: Option<Steps>,
    /// What all rounds together took of the guest's memory.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) memory: Option<Memory>,
}

/// What the guest's kernel counted for one round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Kernel {
    /// TLB flushes on the CPU that asked for them.
    pub(crate) local_flushes: f64,
    /// TLB flushes on other CPUs.
    pub(crate) remote_flushes: f64,
    /// Interrupts from one CPU to another: function calls, which include remote flushes, and reschedules.
    pub(crate) ipis: f64,
    /// System calls of all processes.
    pub(crate) system_calls: f64,
}

impl Kernel {
    /// All TLB flushes.
    pub(crate) fn flushes(&self) -> f64 {
        self.local_flushes + self.remote_flushes
    }
}

/// Threads in step, by step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Steps {
    /// For each page that was written first.
    pub(crate) fault: Kernel,
    /// For each request that committed its pages.
    pub(crate) commit: Kernel,
    /// For all commits of a round, which the host sealed.
    pub(crate) seal: Kernel,
}

/// Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// What the guest's kernel has allocated, and the pages of lock words that the process maps: the driver's.
    pub(crate) driver: i64,
    /// Of the process: the library's.
    pub(crate) process: i64,
    /// Page tables.
    pub(crate) page_tables: i64,
}

impl Memory {
    /// What was taken since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            driver: self.driver - before.driver,
            process: self.process - before.process,
            page_tables: self.page_tables - before.page_tables,
        }
    }
}

/// The parts of one request, in nanoseconds of the guest's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Parts {
    /// Until the server's function runs.
    pub(crate) start: f64,
    /// In the server's function: its own work and page faults.
    pub(crate) body: f64,
    /// From its end until the server continues: the audit and the commit.
    pub(crate) end: f64,
}

/// What the KVM host counted while one measurement was made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// KVM's counters for the VM, by name; `exits` is the total.
    pub(crate) exits: BTreeMap<String, u64>,
    /// CPU time of each thread of the VMM in nanoseconds, by name.
    pub(crate) cpu_ns: BTreeMap<String, u64>,
    /// What the VM monitor has allocated more, in bytes: neither the guest's memory nor the window.
    pub(crate) memory_bytes: u64,
}

/// A measurement as the guest and its host saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    #[serde(flatten)]
    pub(crate) sample: Sample,
    pub(crate) vcpus: u32,
    /// Over all rounds, without what measuring itself costs.
    pub(crate) cost: Cost,
}

impl Sample {
    pub(crate) fn new(what: What, protected: bool, rounds: u32) -> Self {
        Self {
            what,
            pages: 0,
            writes_percent: None,
            dropped: None,
            error: None,
            count: None,
            blocks: None,
            protected,
            rounds,
            nanoseconds: 0.0,
            p99: None,
            parts: None,
            server: None,
            kernel: None,
            steps: None,
            memory: None,
        }
    }

    /// Starts a line of the guest's console that carries a sample.
    const MARK: &str = "@sample ";

    /// Length of such a line. Each byte costs an exit, so all lines have the same length.
    const LINE: usize = 700;

    /// The line that carries it over the guest's console.
    pub(crate) fn line(&self) -> serde_json::Result<String> {
        let line = format!("{}{}", Self::MARK, serde_json::to_string(self)?);
        Ok(format!("{line:<length$}", length = Self::LINE))
    }

    /// The sample in a line of the console; `None` for all other lines.
    pub(crate) fn in_line(line: &str) -> Option<Self> {
        serde_json::from_str(line.trim().strip_prefix(Self::MARK)?).ok()
    }
}

impl Cost {
    /// What was counted since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let difference = |now: &BTreeMap<String, u64>, then: &BTreeMap<String, u64>| {
            now.iter()
                .map(|(name, value)| {
                    let then = then.get(name).copied().unwrap_or(0);
                    (name.clone(), value.saturating_sub(then))
                })
                .filter(|(_, value)| *value > 0)
                .collect()
        };
        Self {
            exits: difference(&self.exits, &before.exits),
            cpu_ns: difference(&self.cpu_ns, &before.cpu_ns),
            memory_bytes: self.memory_bytes.saturating_sub(before.memory_bytes),
        }
    }

    fn exits_of(&self, name: &str) -> u64 {
        self.exits.get(name).copied().unwrap_or(0)
    }

    /// All exits.
    pub(crate) fn all_exits(&self) -> u64 {
        self.exits_of("exits")
    }

    /// Second-level faults.
    pub(crate) fn second_level_faults(&self) -> u64 {
        self.exits_of("pf_taken")
    }

    /// Second-level flushes of all vCPUs, also of those that did not run at that moment: `remote_tlb_flush` has only the
    /// others.
    pub(crate) fn second_level_flushes(&self) -> u64 {
        self.exits_of("remote_tlb_flush_requests")
    }

    /// CPU time of the threads whose names `of` accepts.
    pub(crate) fn cpu(&self, of: impl Fn(&str) -> bool) -> u64 {
        let threads = self.cpu_ns.iter().filter(|(name, _)| of(name));
        threads.map(|(_, time)| time).sum()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample(what: What, pages: usize, protected: bool) -> Sample {
        Sample {
            pages,
            nanoseconds: 1234.5,
            parts: Some(Parts {
                start: 1_234_567.123_456_789,
                body: 1_234_567.123_456_789,
                end: 1_234_567.123_456_789,
            }),
            ..Sample::new(what, protected, 10)
        }
    }

    #[test]
    fn a_sample_survives_the_console() {
        let kernel = Kernel {
            local_flushes: 1.0 / 3.0,
            remote_flushes: 1.0 / 3.0,
            ipis: 1.0 / 3.0,
            system_calls: 1.0 / 3.0,
        };
        let sample = Sample {
            kernel: Some(kernel),
            ..sample(What::Recovery, 4, true)
        };
        let line = sample.line().unwrap();
        assert_eq!(line.len(), Sample::LINE);
        let line = format!("{line}\r");
        assert_eq!(Sample::in_line(&line), Some(sample));
        assert_eq!(Sample::in_line("[    1.0] @sample {}"), None);
    }

    #[test]
    fn a_cost_is_a_difference_of_counters() {
        let cost = |exits, cpu| Cost {
            exits: [("exits".to_owned(), exits), ("halt_exits".to_owned(), 7)].into(),
            cpu_ns: [("vcpu0".to_owned(), cpu), ("control".to_owned(), 1)].into(),
            memory_bytes: 0,
        };
        let cost = cost(15, 900).since(&cost(5, 100));
        assert_eq!(cost.exits, [("exits".to_owned(), 10)].into());
        assert_eq!(cost.all_exits(), 10);
        assert_eq!(cost.cpu(|name| name.starts_with("vcpu")), 800);
        assert_eq!(cost.cpu(|name| name == "control"), 0);
    }
}
