//! One measurement.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum What {
    /// Nothing: what measuring itself costs the host.
    Nothing,
    /// An instruction that always leaves the guest.
    Exit,
    /// A request that ends well; without protection the same work alone.
    Request,
    /// From an error until the same thread is in its next request.
    Recovery,
    /// Operations of a key-value server.
    KeyValue,
}

/// A mean over many rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) what: What,
    /// Pages that the request writes; 0 for one that only reads.
    pub(crate) pages: usize,
    /// Operations in a hundred that write, of a key-value server.
    pub(crate) writes_percent: Option<u32>,
    pub(crate) protected: bool,
    pub(crate) rounds: u32,
    /// Of the guest's clock, for one round.
    pub(crate) nanoseconds: f64,
    /// Where in the request they pass.
    pub(crate) parts: Option<Parts>,
}

/// Nanoseconds of the guest's clock, for one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Parts {
    /// Until the server's function runs.
    pub(crate) begin: f64,
    /// In the server's function: its own work, and the page faults.
    pub(crate) body: f64,
    /// From its end until the server goes on: the audit and the commit.
    pub(crate) end: f64,
}

/// What the KVM host counted while one measurement was made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// KVM's counters for the VM, by their names: `exits` is all of them.
    pub(crate) exits: BTreeMap<String, u64>,
    /// Nanoseconds of CPU time that each thread of the VM monitor has had, by its name.
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
    /// The most that it may be by the project's budget, in nanoseconds of a CPU that executes one instruction in each.
    pub(crate) fn budget(&self) -> Option<f64> {
        match self.what {
            _ if !self.protected => None,
            What::Request if self.pages == 0 => Some(100.0),
            What::Request => Some(1500.0 + 4000.0 * self.pages as f64),
            What::Recovery => Some(15_000.0),
            What::Nothing | What::Exit | What::KeyValue => None,
        }
    }

    /// Begins the line of the guest's console that has a sample.
    const MARK: &str = "@sample ";

    /// Bytes of such a line: each leaves the guest, so all must cost the same.
    const LINE: usize = 360;

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

    /// CPU time of the threads that `of` accepts by name.
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
                begin: 1_234_567.123_456_789,
                body: 1_234_567.123_456_789,
                end: 1_234_567.123_456_789,
            }),
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
    fn budgets_are_of_protected_requests() {
        assert_eq!(sample(What::Request, 4, true).budget(), Some(17_500.0));
        assert_eq!(sample(What::Request, 0, true).budget(), Some(100.0));
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
