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
    /// A successful request, or without protection the same work alone.
    Request,
    /// From an error until the same thread runs its next request.
    Recovery,
    /// Operations on a key-value server's tables, without a network.
    KeyValue,
    /// A command that a server gets over loopback TCP: the CPU time of the server's threads.
    Server,
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
    pub(crate) writes_percent: Option<u32>,
    pub(crate) protected: bool,
    pub(crate) rounds: u32,
    /// One round, by the guest's clock.
    pub(crate) nanoseconds: f64,
    /// The parts of the request.
    pub(crate) parts: Option<Parts>,
    pub(crate) server: Option<ServerLoad>,
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
}

/// A measurement as the guest and its host saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    #[serde(flatten)]
    pub(crate) sample: Sample,
    /// Over all rounds, without what measuring itself costs.
    pub(crate) cost: Cost,
}

impl Sample {
    /// The project's budget for it, in nanoseconds of a CPU that executes one instruction per nanosecond.
    pub(crate) fn budget(&self) -> Option<f64> {
        match self.what {
            _ if !self.protected => None,
            What::Request if self.pages == 0 => Some(250.0),
            What::Request => Some(5000.0 + 2500.0 * self.pages as f64),
            What::Recovery => Some(12_000.0),
            What::Nothing | What::Exit | What::KeyValue | What::Server => None,
        }
    }

    /// Starts a line of the guest's console that carries a sample.
    const MARK: &str = "@sample ";

    /// Length of such a line. Each byte costs an exit, so all lines have the same length.
    const LINE: usize = 400;

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
        }
    }

    /// All exits.
    pub(crate) fn all_exits(&self) -> u64 {
        self.exits.get("exits").copied().unwrap_or(0)
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
            what,
            pages,
            writes_percent: None,
            protected,
            rounds: 10,
            nanoseconds: 1234.5,
            parts: Some(Parts {
                start: 1_234_567.123_456_789,
                body: 1_234_567.123_456_789,
                end: 1_234_567.123_456_789,
            }),
            server: None,
        }
    }

    #[test]
    fn a_sample_survives_the_console() {
        let sample = sample(What::Recovery, 4, true);
        let line = sample.line().unwrap();
        assert_eq!(line.len(), Sample::LINE);
        let line = format!("{line}\r");
        assert_eq!(Sample::in_line(&line), Some(sample));
        assert_eq!(Sample::in_line("[    1.0] @sample {}"), None);
    }

    #[test]
    fn only_protected_requests_have_a_budget() {
        assert_eq!(sample(What::Request, 4, true).budget(), Some(15_000.0));
        assert_eq!(sample(What::Request, 0, true).budget(), Some(250.0));
        assert_eq!(sample(What::Request, 0, false).budget(), None);
        assert_eq!(sample(What::KeyValue, 0, true).budget(), None);
    }

    #[test]
    fn a_cost_is_a_difference_of_counters() {
        let cost = |exits, cpu| Cost {
            exits: [("exits".to_owned(), exits), ("halt_exits".to_owned(), 7)].into(),
            cpu_ns: [("vcpu0".to_owned(), cpu), ("control".to_owned(), 1)].into(),
        };
        let cost = cost(15, 900).since(&cost(5, 100));
        assert_eq!(cost.exits, [("exits".to_owned(), 10)].into());
        assert_eq!(cost.all_exits(), 10);
        assert_eq!(cost.cpu(|name| name.starts_with("vcpu")), 800);
        assert_eq!(cost.cpu(|name| name == "control"), 0);
    }
}
