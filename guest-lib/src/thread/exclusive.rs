//! One thread of a request at a time in the request's lists and heaps.

use super::landing::fail_request;
use super::{Phase, Thread};
use crate::failure::Kind;
use crate::run;
use std::cell::Cell;

/// What the failure says of a request that waits for itself: a handler of a signal, or a wild jump.
const AMID: &[u8] = b"the library was called in the middle of its own work";

impl Thread {
    /// Runs code that uses the request's lists or heaps: one thread of the request at a time, which
    /// may come back here from inside. Comes to the landing instead if the request fails while another one has them.
    pub(crate) fn exclusive<T>(&self, code: impl FnOnce() -> T) -> T {
        if self.alone.get() {
            return code();
        }
        let state = self.state();
        // If no other thread is there, and none has left since the look before, it is this one that has them:
        // the library was called in the middle of itself.
        let (own, departures) = (Cell::new(false), Cell::new(None));
        let give_up = |for_nothing| {
            let alone = state.members.is_empty();
            let before = departures.replace(Some(state.members.departures()));
            own.set(for_nothing && alone && before == departures.get());
            self.is_doomed() || own.get() || (for_nothing && state.members.has_lost())
        };
        while !state.latch.take(give_up) {
            // Nothing was begun here yet, so even critical code can be cut short.
            if self.phase() == Phase::Running {
                if self.is_doomed() {
                    fail_request(Kind::Deadline, 0, &[]);
                }
                if own.get() {
                    fail_request(Kind::Memory, 0, AMID);
                }
                fail_request(Kind::ThreadDeath, 0, run::LOST);
            }
        }
        self.alone.set(true);
        let value = code();
        self.alone.set(false);
        state.latch.open();
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooked::Hooked;
    use crate::thread::current;
    use crate::thread::tests::failure;
    use std::sync::mpsc;

    #[test]
    fn a_request_that_calls_the_library_in_the_middle_of_itself_fails_at_once() {
        let app = Hooked::app("in the middle", |_| ());
        let domain = app.domain("one").unwrap();
        let failure = failure(domain.run(|request| {
            // Here a jump to other code struck, between two instructions of `exclusive`.
            assert!(current().unwrap().state().latch.take(|_| false));
            request.alloc(1u8).map(drop)
        }));
        assert_eq!(failure.kind, Kind::Memory);
        assert!(failure.message.contains("in the middle"), "{failure}");
        domain.run(|request| request.alloc(1u8).map(drop)).unwrap();
    }

    #[test]
    fn a_thread_that_ends_with_the_latch_fails_the_request_of_whoever_waits_for_it() {
        let app = Hooked::app("lost latch", |_| ());
        let domain = app.domain("one").unwrap();
        let (inside, is_inside) = mpsc::channel();
        let failure = failure(domain.run(|request| {
            let ticket = request.ticket()?;
            let lost = std::thread::spawn(move || {
                let _ = ticket.join(|_| {
                    current().unwrap().exclusive(|| {
                        inside.send(()).unwrap();
                        // SAFETY: ends the thread behind everybody's back; what it owns is leaked.
                        unsafe { libc::syscall(libc::SYS_exit, 0) };
                    });
                });
            });
            // It cannot tell how it ended.
            std::mem::forget(lost);
            is_inside.recv().unwrap();
            request.alloc(1u8).map(drop)
        }));
        assert_eq!(failure.kind, Kind::ThreadDeath);
        domain.run(|request| request.alloc(1u8).map(drop)).unwrap();
    }
}
