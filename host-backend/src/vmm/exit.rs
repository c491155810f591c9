//! How a VM ends: the reasons, the report of a crash, and the handle that ends it.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::kick::Kicker;
use crate::vitals::Pulse;

/// Why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest powered off.
    PowerOff,
    /// The guest reset itself: it reboots, or its kernel panicked. The operator decides whether it is
    /// restarted.
    Reset,
    /// Stopped from outside the guest; the text says by what.
    Stopped(&'static str),
    /// The guest cannot continue.
    Crash(Box<CrashReport>),
}

impl ExitReason {
    /// Whether the guest went down by itself, so that a restart makes sense.
    pub fn allows_restart(&self) -> bool {
        matches!(self, Self::Reset | Self::Crash(_))
    }

    /// The reason in one word, for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::PowerOff => "power-off",
            Self::Reset => "reset",
            Self::Stopped(_) => "stopped",
            Self::Crash(_) => "crash",
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest turned itself off"),
            Self::Reset => f.write_str("the guest reset itself"),
            Self::Stopped(by) => write!(f, "stopped by {by}"),
            Self::Crash(report) => write!(f, "the guest died: {report}"),
        }
    }
}

/// The state of a guest that could not continue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CrashReport {
    /// What happened, in one sentence without a full stop.
    pub what: String,
    /// KVM itself gave up (`KVM_EXIT_INTERNAL_ERROR`), rather than the guest.
    pub internal_error: bool,
    /// The vCPU on which it happened, whose registers follow; `None` for a device.
    pub vcpu: Option<u32>,
    /// Its instruction pointer.
    pub rip: u64,
    /// Its page-table root.
    pub cr3: u64,
    /// The address that it last tried to reach by a page fault.
    pub cr2: u64,
    /// Its privilege level: 0 for the kernel, 3 for user mode.
    pub cpl: u8,
    /// The guest physical address concerned, if there is one and it is known.
    pub gpa: Option<u64>,
    /// The bytes at the instruction pointer, if they can be read.
    pub code: Vec<u8>,
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            vcpu,
            rip,
            cr3,
            cr2,
            cpl,
            ..
        } = self;
        f.write_str(what)?;
        if let Some(vcpu) = vcpu {
            write!(
                f,
                "; vCPU {vcpu}, CPL {cpl}, RIP {rip:#x}, CR2 {cr2:#x}, CR3 {cr3:#x}"
            )?;
        }
        if let Some(gpa) = self.gpa {
            write!(f, ", GPA {gpa:#x}")?;
        }
        if !self.code.is_empty() {
            write!(f, ", code")?;
            for byte in &self.code {
                write!(f, " {byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Ends a running VM, from any thread. Clones end the same VM.
#[derive(Clone, Default)]
pub struct StopHandle {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Guards the reason and the list of vCPUs together, so that a vCPU that joins late sees a
    /// stop that came early.
    state: Mutex<StopState>,
    stopped: Condvar,
}

#[derive(Default)]
struct StopState {
    reason: Option<ExitReason>,
    /// What stopped the VM from outside first; also set when the guest had ended by itself before.
    ordered: Option<&'static str>,
    kickers: Vec<Kicker>,
}

impl StopHandle {
    /// Ends the VM with `reason`: every vCPU leaves the guest and its thread ends. The first
    /// reason counts; later calls change nothing.
    pub fn stop(&self, reason: ExitReason) {
        let mut state = self.lock();
        if let ExitReason::Stopped(by) = reason {
            state.ordered.get_or_insert(by);
        }
        if state.reason.is_none() {
            state.reason = Some(reason);
            self.shared.stopped.notify_all();
        }
        for kicker in &state.kickers {
            kicker.kick();
        }
    }

    /// Whether a reason to end has been given.
    pub fn is_stopping(&self) -> bool {
        self.lock().reason.is_some()
    }

    /// Waits until a reason to end is given and returns it.
    pub fn wait(&self) -> ExitReason {
        let shared = self.shared.clone();
        let pulse = Pulse::new("main", move || shared.stopped.notify_all());
        let mut state = self.lock();
        loop {
            pulse.beat();
            if let Some(reason) = &state.reason {
                return reason.clone();
            }
            state = self
                .shared
                .stopped
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Forgets why the guest ended, for its next boot. To be called when all its vCPUs have ended.
    ///
    /// # Errors
    ///
    /// The VM was stopped from outside, perhaps after the guest had ended by itself: there must be no
    /// next boot, and this is the reason.
    pub fn rearm(&self) -> Result<(), ExitReason> {
        let mut state = self.lock();
        match state.ordered {
            Some(by) => Err(ExitReason::Stopped(by)),
            None => {
                state.reason = None;
                Ok(())
            }
        }
    }

    /// Adds a vCPU to those that a stop kicks out of the guest, also if the stop came already.
    pub(crate) fn attach(&self, kicker: Kicker) {
        let mut state = self.lock();
        if state.reason.is_some() {
            kicker.kick();
        } else {
            state.kickers.push(kicker);
        }
    }

    /// Forgets all vCPUs: to be called between [`Self::wait`], after which each of them has been
    /// kicked, and the moment in which their threads are joined and cannot be signalled any more.
    pub(crate) fn detach_all(&self) {
        self.lock().kickers.clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, StopState> {
        // The state is consistent after each statement under the lock, so a panic elsewhere while
        // holding it does no harm.
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_to_stop_counts() {
        let handle = StopHandle::default();
        assert!(!handle.is_stopping());
        handle.stop(ExitReason::PowerOff);
        handle.stop(ExitReason::Reset);
        assert!(handle.is_stopping());
        assert_eq!(handle.wait(), ExitReason::PowerOff);
    }

    #[test]
    fn a_handle_is_ready_again_after_an_end_of_the_guests_own() {
        let handle = StopHandle::default();
        handle.stop(ExitReason::Reset);
        assert_eq!(handle.rearm(), Ok(()));
        assert!(!handle.is_stopping());
        handle.stop(ExitReason::PowerOff);
        assert_eq!(handle.wait(), ExitReason::PowerOff);
    }

    #[test]
    fn stop_during_a_guest_reset_is_not_lost() {
        let handle = StopHandle::default();
        handle.stop(ExitReason::Reset);
        handle.stop(ExitReason::Stopped("a test"));
        assert_eq!(handle.wait(), ExitReason::Reset);
        assert_eq!(handle.rearm(), Err(ExitReason::Stopped("a test")));
    }

    #[test]
    fn a_crash_report_names_cpu_address_and_code() {
        let report = CrashReport {
            what: "triple fault".into(),
            vcpu: Some(1),
            rip: 0x1000,
            gpa: Some(0x2000),
            code: vec![0x0f, 0x0b],
            ..CrashReport::default()
        };
        let text = ExitReason::Crash(Box::new(report)).to_string();
        for part in [
            "triple fault",
            "vCPU 1",
            "RIP 0x1000",
            "GPA 0x2000",
            "code 0f 0b",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_crash_that_no_vcpu_is_to_blame_for_names_none() {
        let report = CrashReport {
            what: "a device met broken memory".into(),
            ..CrashReport::default()
        };
        assert_eq!(report.to_string(), "a device met broken memory");
    }
}
