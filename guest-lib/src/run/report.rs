//! Reporting a failed request, which also discards what it wrote.

use super::end::abort_process;
use super::restore::{Cut, restore};
use crate::failure::{Failure, Kind, Reported};
use crate::os::dispositions;
use crate::os::signals::{self, Signals};
use crate::thread::{Thread, end_unsuppressed, evidence};
use std::io;

/// Discards and reports. All threads of a request get the same failure, that of the first.
pub(super) fn report(thread: &Thread) -> Failure {
    if !signals::suppressing() {
        let kind = thread.with_record(|record| Kind::from_number(record.kind));
        end_unsuppressed(kind.unwrap_or(Kind::Memory), thread.message());
    }
    thread.land();
    thread.repair_control();
    let reported = thread.with_record(|record| {
        let reported = thread.state().fail(|| {
            record.tag = thread.tag();
            record.handled = signals::handled().bits();
            record.handler = signals::handler() as u64;
            evidence::attach(record, thread);
            thread.report_open(record);
            thread.state().with_held(|held| {
                loop {
                    match thread.app().backend().fail(record, held) {
                        Ok(()) => break,
                        Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                        Err(error) => {
                            abort_with("cannot discard what the failed request wrote", &error)
                        }
                    }
                }
            });
            // What is done next may say something else.
            Reported::new(record, thread.message_copied())
        });
        dispositions::restore(Signals::from_bits(record.handled));
        reported
    });
    // From here on the heap is known to work.
    restore(thread, &Cut::latest(thread));
    reported.with_message(|bytes| thread.empty_string(bytes))
}

/// Ends the process, which discards what the request wrote: it can be neither committed nor discarded
/// otherwise.
pub(super) fn abort_with(what: &str, error: &io::Error) -> ! {
    signals::write_stderr(b"vmsrs: ");
    signals::write_stderr(what.as_bytes());
    signals::write_stderr(b": ");
    abort_process(error.to_string().as_bytes());
}
