//! Reporting a failed request, which also discards what it wrote.

use super::end::abort_process;
use super::restore::restore;
use crate::failure::{Failure, Kind};
use crate::os::signals;
use crate::thread::{Thread, evidence};
use std::io;
use std::time::Duration;
use vmsrs_protocol::incident::REG_RIP;

/// Discards and reports. All threads of a request get the same failure, that of the first.
pub(super) fn report(thread: &Thread) -> Failure {
    thread.land();
    thread.repair_control();
    let mut record = thread.record();
    let mut first = false;
    let failure = thread.state().fail(|| {
        first = true;
        record.tag = thread.tag();
        evidence::attach(&mut record, thread);
        thread.report_open(&mut record);
        let held = thread.state().held();
        loop {
            match thread.app().backend().fail(&mut record, held.as_slice()) {
                Ok(()) => break,
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => abort_with("cannot discard what the failed request wrote", &error),
            }
        }
        // The heap may be locked, and what is done next may say something else.
        let message = thread.message_copied();
        restore(thread, &record);
        Failure {
            kind: Kind::from_number(record.kind).unwrap_or(Kind::Memory),
            incident: record.incident,
            address: record.address,
            instruction: record.registers[REG_RIP],
            signal: record.signal,
            code: record.code,
            drafts: record.drafts,
            recovery: Duration::from_nanos(record.recovery_ns),
            defers_failed: 0,
            message: text(message.as_slice()),
        }
    });
    if !first {
        restore(thread, &record);
    }
    failure
}

/// A message as text.
fn text(bytes: &[u8]) -> String {
    // Most are text, which is found faster by itself.
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// Ends the process, which discards what the request wrote: it can be neither committed nor discarded
/// otherwise.
pub(super) fn abort_with(what: &str, error: &io::Error) -> ! {
    signals::write_stderr(b"vmsrs: ");
    signals::write_stderr(what.as_bytes());
    signals::write_stderr(b": ");
    abort_process(error.to_string().as_bytes());
}
