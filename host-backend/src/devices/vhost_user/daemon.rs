//! What became of a daemon: known to its device, to whoever supervises it, and to the operator.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::output::say;

/// The state of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DaemonState {
    /// It serves its device.
    Serving,
    /// It does not any more, and the device's requests fail; why.
    Lost(String),
}

/// A daemon as others see it.
#[derive(Debug)]
pub struct DaemonStatus {
    /// The option that asked for it, such as `--disk /var/lib/vm.img`.
    pub option: String,
    /// Its process, if this program has started it: whoever waits for that tells its end.
    pub pid: Option<u32>,
    /// What its loss means for the guest.
    loss: &'static str,
    state: Mutex<DaemonState>,
}

impl DaemonStatus {
    /// A daemon that serves.
    pub fn new(option: String, pid: Option<u32>, loss: &'static str) -> Self {
        Self {
            option,
            pid,
            loss,
            state: Mutex::new(DaemonState::Serving),
        }
    }

    /// Its state.
    pub fn state(&self) -> DaemonState {
        self.lock().clone()
    }

    /// Whether it serves no more.
    pub fn is_lost(&self) -> bool {
        *self.lock() != DaemonState::Serving
    }

    /// It closed the connection. The end of a process that is supervised is reported with its reason.
    pub fn disconnected(&self) {
        const CLOSED: &str = "it closed the connection";
        match self.pid {
            None => self.broken(CLOSED),
            Some(_) => {
                let mut state = self.lock();
                if *state == DaemonState::Serving {
                    *state = DaemonState::Lost(CLOSED.into());
                }
            }
        }
    }

    /// It serves no more because of what it did or did not do; said if it is news.
    pub fn broken(&self, why: &str) {
        let mut state = self.lock();
        if *state == DaemonState::Serving {
            *state = DaemonState::Lost(why.into());
            self.report(why);
        }
    }

    /// Its process has ended.
    pub fn ended(&self, how: &str) {
        *self.lock() = DaemonState::Lost(how.into());
        self.report(how);
    }

    fn report(&self, why: &str) {
        say(format_args!(
            "the daemon of {} is lost, and {}: {why}",
            self.option, self.loss
        ));
    }

    fn lock(&self) -> MutexGuard<'_, DaemonState> {
        // One value, whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
