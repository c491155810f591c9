//! Reporting a failed request, which also discards what it wrote.

use super::trial;
use crate::failure::{Failure, Kind};
use crate::os::{clib, signals};
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
        evidence::attach(&mut record, thread.stack_region(), thread.message());
        let held = thread.state().held();
        loop {
            match thread.app().backend().fail(&mut record, held.as_slice()) {
                Ok(()) => break,
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => give_in("cannot discard what the failed request wrote", &error),
            }
        }
        signals::unblock();
        examine(thread, record.signal, record.registers[REG_RIP]);
        let message = String::from_utf8_lossy(thread.message()).into_owned();
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
        signals::unblock();
        examine(thread, record.signal, record.registers[REG_RIP]);
    }
    failure
}

/// Ends the process if the thread has left the C library's heap locked or damaged.
fn examine(thread: &Thread, signal: i32, instruction: u64) {
    if clib::is_suspect(signal, instruction) && !trial::heap_works(thread) {
        give_in_because(b"vmsrs: the C library's heap is damaged or stays locked");
    }
}

/// What the request wrote can be neither kept nor taken back: only the process's end, which discards
/// it as well, keeps the promise.
pub(super) fn give_in(what: &str, error: &io::Error) -> ! {
    signals::say(b"vmsrs: ");
    signals::say(what.as_bytes());
    signals::say(b": ");
    give_in_because(error.to_string().as_bytes());
}

/// Ends the process: nothing else is left that keeps the promises.
fn give_in_because(what: &[u8]) -> ! {
    signals::say(what);
    signals::say(b"; the process ends, committed domains are whole\n");
    signals::end_process()
}
