//! Reporting a failed request, which also discards what it wrote.

use super::aside::{self, Aside};
use super::{health, trial};
use crate::failure::{Failure, Kind};
use crate::os::{clib, signals};
use crate::thread::{Thread, evidence};
use std::io;
use std::time::Duration;
use vmsrs_protocol::incident::REG_RIP;
use vmsrs_protocol::ioctl::IoctlFail;

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
        let message = text(thread.message());
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
            message,
        }
    });
    if !first {
        restore(thread, &record);
    }
    failure
}

/// Makes the thread what it was when the request began.
fn restore(thread: &Thread, record: &IoctlFail) {
    // Where a signal has sent the thread here, its handler has done that.
    if record.signal == 0 {
        thread.restore_signals();
    }
    thread.restore(|work| aside::run(thread, work) == Aside::Done);
    check_c_heap(thread, record.signal, record.registers[REG_RIP]);
}

/// A message as text.
fn text(bytes: &[u8]) -> String {
    // Most are text, which is found faster by itself.
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// Ends the process if the thread has left the C library's heap locked or damaged.
fn check_c_heap(thread: &Thread, signal: i32, instruction: u64) {
    // An allocator of the program's own cannot be seen, and an interrupt may have struck in it.
    let interrupted = signal != 0 && signal == signals::interrupt();
    let is_suspect = interrupted || clib::is_suspect(signal, instruction);
    let thoroughly = interrupted || clib::has_other_allocator();
    if !is_suspect {
        return;
    }
    if !trial::heap_works(thread, thoroughly) {
        abort_process(b"vmsrs: the C library's heap is damaged or stays locked");
    }
    health::note_suspect();
}

/// Ends the process, which discards what the request wrote: it can be neither committed nor discarded
/// otherwise.
pub(super) fn abort_with(what: &str, error: &io::Error) -> ! {
    signals::write_stderr(b"vmsrs: ");
    signals::write_stderr(what.as_bytes());
    signals::write_stderr(b": ");
    abort_process(error.to_string().as_bytes());
}

/// Ends the process: domains stay as committed.
fn abort_process(what: &[u8]) -> ! {
    signals::write_stderr(what);
    signals::write_stderr(b"; the process ends, committed domains are whole\n");
    signals::end_process()
}
