//! What `vmsrs top` knows: the last two states of each VM, and what has changed between them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::control::{IncidentSummary, VmStatus};

/// A VM, as it was when it was last asked.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) name: String,
    /// Nothing if it runs and does not answer.
    pub(super) status: Option<Box<VmStatus>>,
    at: Instant,
    pub(super) rates: Rates,
}

/// What happens in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) batches: f64,
    pub(super) sealed_pages: f64,
    pub(super) dropped_pages: f64,
    pub(super) incidents: f64,
}

impl Rates {
    /// Between two states of a VM.
    fn between(before: &VmStatus, now: &VmStatus, time: Duration) -> Self {
        let seconds = time.as_secs_f64();
        // Another VM of that name counts from zero.
        if seconds <= 0.0 || before.pid != now.pid {
            return Self::default();
        }
        let rate =
            |count: fn(&VmStatus) -> u64| count(now).saturating_sub(count(before)) as f64 / seconds;
        Self {
            batches: rate(|status| status.recovery.batches),
            sealed_pages: rate(|status| status.recovery.sealed_pages),
            dropped_pages: rate(|status| status.recovery.dropped_drafts),
            incidents: rate(|status| status.recovery.all_incidents()),
        }
    }
}

/// All VMs, and which of them is looked at.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) vms: Vec<Vm>,
    pub(super) selected: usize,
    /// The newest incidents of the one that is looked at, the newest first.
    pub(super) incidents: Vec<IncidentSummary>,
    pub(super) paused: bool,
}

impl Model {
    /// Takes what the VMs have said at a time.
    pub(super) fn update(&mut self, states: Vec<(String, Option<Box<VmStatus>>)>, at: Instant) {
        let selected = self.vms.get(self.selected).map(|vm| vm.name.clone());
        let mut before: BTreeMap<String, Vm> =
            self.vms.drain(..).map(|vm| (vm.name.clone(), vm)).collect();
        let vms = states.into_iter().map(|(name, status)| {
            let before = before.remove(&name);
            let rates = match (before.as_ref().and_then(|vm| vm.status.as_ref()), &status) {
                (Some(old), Some(new)) => {
                    let time = before.as_ref().map_or(Duration::ZERO, |vm| at - vm.at);
                    Rates::between(old, new, time)
                }
                _ => Rates::default(),
            };
            Vm {
                name,
                status,
                at,
                rates,
            }
        });
        self.vms = vms.collect();
        let place = self
            .vms
            .iter()
            .position(|vm| Some(&vm.name) == selected.as_ref());
        let last = self.vms.len().saturating_sub(1);
        self.selected = place.unwrap_or(self.selected.min(last));
    }

    /// The VM that is looked at.
    pub(super) fn current(&self) -> Option<&Vm> {
        self.vms.get(self.selected)
    }

    /// Looks at the one before, or after.
    pub(super) fn select(&mut self, forward: bool) {
        let last = self.vms.len().saturating_sub(1);
        self.selected = match forward {
            true => (self.selected + 1).min(last),
            false => self.selected.saturating_sub(1),
        };
        self.incidents.clear();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::control::{IncidentCount, IncidentOutcome};

    pub(in crate::cli::top) fn status(name: &str, batches: u64, incidents: u64) -> Box<VmStatus> {
        let mut status = VmStatus {
            name: name.into(),
            version: "1".into(),
            pid: 1,
            uptime_ms: 5_000,
            vcpus: 2,
            memory_bytes: 1 << 30,
            restarts: 0,
            last_restart: None,
            console_lost_bytes: 0,
            recovery: Default::default(),
            network: None,
            daemons: Vec::new(),
            device_errors: Vec::new(),
        };
        status.recovery.batches = batches;
        status.recovery.pages = 30;
        status.recovery.pages_max = 120;
        status.recovery.vault_frames = 200;
        status.recovery.sealed_frames = 50;
        status.recovery.incidents = vec![IncidentCount {
            what: "double-free".into(),
            outcome: IncidentOutcome::Recovered,
            count: incidents,
        }];
        Box::new(status)
    }

    #[test]
    fn rates_are_of_the_time_between_two_states() {
        let (start, mut model) = (Instant::now(), Model::default());
        model.update(vec![("web".into(), Some(status("web", 100, 3)))], start);
        assert_eq!(model.current().unwrap().rates, Rates::default());
        let later = start + Duration::from_secs(2);
        model.update(vec![("web".into(), Some(status("web", 150, 4)))], later);
        let rates = model.current().unwrap().rates;
        assert_eq!((rates.batches, rates.incidents), (25.0, 0.5));
        // Started again, and one that does not answer.
        let mut again = status("web", 10, 0);
        again.pid = 2;
        let last = later + Duration::from_secs(1);
        model.update(vec![("web".into(), Some(again))], last);
        assert_eq!(model.current().unwrap().rates, Rates::default());
        model.update(vec![("web".into(), None)], last + Duration::from_secs(1));
        assert_eq!(model.current().unwrap().rates, Rates::default());
    }

    #[test]
    fn the_selection_stays_with_its_vm() {
        let (start, mut model) = (Instant::now(), Model::default());
        let states = |names: &[&str]| -> Vec<_> {
            let state = |name: &&str| (name.to_string(), Some(status(name, 0, 0)));
            names.iter().map(state).collect()
        };
        model.select(true);
        assert!(model.current().is_none());
        model.update(states(&["a", "c"]), start);
        model.select(true);
        model.select(true);
        assert_eq!(model.current().unwrap().name, "c");
        model.update(states(&["a", "b", "c"]), start);
        assert_eq!(model.current().unwrap().name, "c");
        model.update(states(&["a"]), start);
        assert_eq!(model.current().unwrap().name, "a");
        model.select(false);
        assert_eq!(model.selected, 0);
    }
}
