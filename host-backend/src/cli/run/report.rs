//! The end of `vmsrs run`: what is said, and the exit code.

use serde::Serialize;

use super::End;

use crate::cli::text::{duration, write_json};
use crate::cli::{Exit, Failure};
use crate::control::{EngineStatus, snapshot};
use crate::machine::{RESTART_PERIOD, RunningVm};
use crate::output::say;
use crate::vmm::{CrashReport, ExitReason};

/// The report at the end of `vmsrs run --json`.
#[derive(Serialize)]
struct Report<'a> {
    name: &'a str,
    exit: u8,
    reason: &'static str,
    message: String,
    uptime_ms: u64,
    restarts: u64,
    gave_up: bool,
    crash: Option<Crash<'a>>,
    console_lost_bytes: u64,
    recovery: EngineStatus,
}

#[derive(Serialize)]
struct Crash<'a> {
    what: &'a str,
    vcpu: Option<u32>,
    cpl: u8,
    rip: u64,
    cr2: u64,
    cr3: u64,
    gpa: Option<u64>,
    code: &'a [u8],
}

impl<'a> From<&'a CrashReport> for Crash<'a> {
    fn from(report: &'a CrashReport) -> Self {
        Self {
            what: &report.what,
            vcpu: report.vcpu,
            cpl: report.cpl,
            rip: report.rip,
            cr2: report.cr2,
            cr3: report.cr3,
            gpa: report.gpa,
            code: &report.code,
        }
    }
}

/// Reports how the VM ended on standard error and, if requested, as JSON; returns the exit code.
pub(super) fn report(vm: &RunningVm, end: &End, json: bool) -> Result<Exit, Failure> {
    let reason = &end.reason;
    let (exit, crash) = match reason {
        ExitReason::PowerOff | ExitReason::Stopped(_) => (Exit::Ok, None),
        ExitReason::Reset => (Exit::GuestReset, None),
        ExitReason::Crash(report) => {
            let exit = if end.unfit_kvm {
                Exit::Machine
            } else {
                Exit::GuestDied
            };
            (exit, Some(Crash::from(&**report)))
        }
    };
    let recovery = snapshot::status(&vm.recovery);
    let incidents: u64 = recovery.incidents.iter().map(|count| count.count).sum();
    let uptime_ms = vm.uptime_ms();
    let restarts = vm.restarts().count;
    say(format_args!(
        "{reason} after {}, with {incidents} incident{}",
        duration(uptime_ms),
        if incidents == 1 { "" } else { "s" }
    ));
    if end.unfit_kvm {
        say(format_args!(
            "KVM has neither EPT nor NPT on this machine and cannot run a stock guest: see \
             `vmsrs doctor`"
        ));
    }
    if let Some(limit) = end.gave_up_after {
        say(format_args!(
            "gave up: the guest went down after {limit} restart{} within {} s; see its \
             console for the reason; --restarts allows more",
            if limit == 1 { "" } else { "s" },
            RESTART_PERIOD.as_secs()
        ));
    }
    let is_written = vm.console.finish();
    let console_lost_bytes = vm.console.lost();
    if console_lost_bytes != 0 {
        say(format_args!(
            "{console_lost_bytes} bytes of the console were lost: they could not be written"
        ));
    }
    if json && vm.console.input && !is_written {
        // Not as an error, which is written to standard output too: it would make the end wait for whoever does not
        // read the console.
        say(format_args!(
            "standard output cannot be written: nobody reads it"
        ));
        return Ok(Exit::Failure);
    }
    if json {
        write_json(&Report {
            name: &vm.name,
            exit: exit as u8,
            reason: reason.name(),
            message: reason.to_string(),
            uptime_ms,
            restarts,
            gave_up: end.gave_up_after.is_some(),
            crash,
            console_lost_bytes,
            recovery,
        })?;
    }
    Ok(exit)
}
