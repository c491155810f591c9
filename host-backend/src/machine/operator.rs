//! The running VM as the control socket sees it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::control::{
    Count, DaemonFacts, DomainList, DomainPosition, IncidentDetail, IncidentSummary, Operator,
    Restart, ScrubStep, VmStatus,
};
use crate::control::{domains, snapshot};
use crate::devices::net::NetCounters;
use crate::devices::vhost_user::{DaemonState, DaemonStatus};
use crate::engine::{Position, Scope};
use crate::engine_handle::EngineHandle;
use crate::size::Size;
use crate::tally::Tally;
use crate::vmm::console::Console;
use crate::vmm::{ExitReason, PowerButton, StopHandle};

/// The VM as the control socket sees it.
pub(crate) struct RunningVm {
    pub(crate) name: String,
    pub(crate) started: Instant,
    pub(crate) vcpus: u32,
    pub(crate) memory: Size,
    pub(crate) restarts: Mutex<Restarts>,
    pub(crate) recovery: EngineHandle,
    pub(crate) network: Option<Arc<NetCounters>>,
    /// The daemons that serve devices.
    pub(crate) daemons: Vec<Arc<DaemonStatus>>,
    /// Errors of the driver, for each device.
    pub(crate) tallies: Vec<Arc<Tally>>,
    pub(crate) console: Console,
    pub(crate) stop: StopHandle,
    pub(crate) power_button: PowerButton,
}

/// Pages that are checked for one request: a client that waits gets an answer soon.
const SCRUB_PAGES: u32 = 1024;

/// The guest's restarts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Restarts {
    pub(crate) count: u64,
    last: Option<Restart>,
}

impl RunningVm {
    /// Notes that the guest starts again after it ended for `reason`.
    pub(crate) fn restarting(&self, reason: &ExitReason) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH);
        let mut restarts = self.restarts();
        restarts.count += 1;
        restarts.last = Some(Restart {
            at_ms: u64::try_from(at.unwrap_or_default().as_millis()).unwrap_or(u64::MAX),
            reason: reason.name().to_owned(),
            message: reason.to_string(),
        });
    }

    pub(crate) fn restarts(&self) -> MutexGuard<'_, Restarts> {
        // Plain values, whole after every statement.
        self.restarts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn uptime_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn facts(daemon: &DaemonStatus) -> DaemonFacts {
    DaemonFacts {
        option: daemon.option.clone(),
        pid: daemon.pid,
        lost: match daemon.state() {
            DaemonState::Serving => None,
            DaemonState::Lost(why) => Some(why),
        },
    }
}

impl Operator for RunningVm {
    fn status(&self) -> VmStatus {
        let frames = self.network.iter().map(|network| network.tally());
        let registers = self.tallies.iter().map(|tally| &**tally);
        let mut errors = BTreeMap::new();
        for (what, count) in frames.chain(registers).flat_map(Tally::counts) {
            *errors.entry(what).or_insert(0) += count;
        }
        let restarts = self.restarts().clone();
        VmStatus {
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ms: self.uptime_ms(),
            vcpus: self.vcpus,
            memory_bytes: self.memory.0,
            restarts: restarts.count,
            last_restart: restarts.last,
            console_lost_bytes: self.console.lost(),
            recovery: snapshot::status(&self.recovery),
            network: self.network.as_ref().map(|net| net.snapshot()),
            daemons: self.daemons.iter().map(|daemon| facts(daemon)).collect(),
            device_errors: errors
                .into_iter()
                .map(|(what, count)| Count {
                    what: what.to_owned(),
                    count,
                })
                .collect(),
        }
    }

    fn incidents(&self) -> Vec<IncidentSummary> {
        self.recovery.read(snapshot::incidents)
    }

    fn incident(&self, id: u64) -> Option<IncidentDetail> {
        self.recovery.read(|engine| snapshot::incident(engine, id))
    }

    fn domains(&self, app: Option<&str>, from: Option<DomainPosition>) -> Option<DomainList> {
        let scope = match app {
            None => Scope::default(),
            Some(app) => self.recovery.find(app, None)?,
        };
        let from = from.unwrap_or_default();
        Some(
            self.recovery
                .read(|engine| domains::part(engine, scope.app, from)),
        )
    }

    fn scrub(
        &self,
        app: Option<&str>,
        domain: Option<&str>,
        from: Option<Position>,
    ) -> Option<ScrubStep> {
        let scope = match app {
            None => Scope::default(),
            Some(app) => self.recovery.find(app, domain)?,
        };
        let position = from.unwrap_or(scope.start());
        let turn = self.recovery.scrub(scope, position, SCRUB_PAGES);
        Some(ScrubStep {
            found: turn.found,
            pages: self.recovery.sealed_pages(scope),
            next: turn.next,
        })
    }

    fn press_power_button(&self) {
        if let Err(error) = self.power_button.press() {
            // An eventfd refuses only when its counter is full, and then an interrupt is pending.
            log::debug!("the power button is not pressed: {error}");
        }
    }

    fn stop(&self) {
        self.stop.stop(ExitReason::Stopped("the control socket"));
    }
}
