//! One thread of a request at a time in the request's lists and heaps.

use super::landing::fail_request;
use super::{Phase, Thread, uncut};
use crate::failure::{Kind, LOST};
use crate::state::latch::Take;
use std::sync::atomic::{Ordering, compiler_fence};

/// What the failure says of a request that waits for itself: a handler of a signal, or a wild jump.
pub(crate) const AMID: &[u8] = b"the library was called in the middle of its own work";

impl Thread {
    /// Runs code that uses the request's lists or heaps: one thread of the request at a time, which
    /// may come back here from inside. Comes to the landing instead if the request fails while another one has them.
    pub(crate) fn exclusive<T>(&self, code: impl FnOnce() -> T) -> T {
        if self.alone.get() {
            return code();
        }
        let state = self.state();
        let give_up =
            |for_nothing| self.is_doomed() || (for_nothing && uncut(|| state.members.has_lost()));
        loop {
            let take = state.latch.take(self.number, give_up);
            if take == Take::Taken {
                break;
            }
            // Nothing was begun here yet, so even critical code can be cut short.
            if self.phase() == Phase::Running {
                if self.is_doomed() {
                    fail_request(Kind::Deadline, 0, &[]);
                }
                if take == Take::Own {
                    fail_request(Kind::Memory, 0, AMID);
                }
                fail_request(Kind::ThreadDeath, 0, LOST);
            }
            if take == Take::Own {
                // On its way out of the request with the latch that it has, and nothing begun under it.
                break;
            }
        }
        self.alone.set(true);
        // Whoever cuts this short, or asks in the middle of it, sees how far it is.
        compiler_fence(Ordering::SeqCst);
        let value = code();
        compiler_fence(Ordering::SeqCst);
        self.alone.set(false);
        state.latch.open();
        value
    }

    /// Whether the thread was taken out of the middle of the library's work and never came back to it.
    pub(crate) fn is_amid(&self) -> bool {
        self.alone.get() || self.is_critical() || self.state().latch.is_of(self.number)
    }

    /// Fails the request if this is the middle of the library's own work, where a handler of a signal or a wild
    /// jump has called it again: what it would change, or commit, is half changed. The check of an invariant
    /// is called by the library, and may call it.
    pub(crate) fn refuse_amid(&self) {
        // In critical code alone, no list and no heap is half changed; and the library drops there what the
        // server has given it.
        let is_amid = self.alone.get() || self.state().latch.is_of(self.number);
        if is_amid && self.phase() == Phase::Running && !self.checking.get() {
            fail_request(Kind::Memory, 0, AMID);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::mock::Hooked;
    use crate::run::request::Request;
    use crate::state::domain::Domain;
    use crate::thread::current;
    use crate::thread::tests::failure;
    use std::sync::mpsc;

    type Call = fn(&Request, &'static Domain) -> Result<(), Error>;

    /// Here a jump to other code strikes, between two instructions of `exclusive`.
    fn take_the_latch() -> &'static Thread {
        let thread = current().unwrap();
        let take = thread.state().latch.take(thread.number, |_| false);
        assert_eq!(take, Take::Taken);
        thread
    }

    #[test]
    fn a_request_that_calls_the_library_in_the_middle_of_itself_fails_at_once() {
        let app = Hooked::app("in the middle", |_| ());
        let domain = app.domain("one").unwrap();
        let failure = failure(domain.run(|request| {
            take_the_latch();
            request.alloc(1u8).map(drop)
        }));
        assert_eq!(failure.kind, Kind::Memory);
        assert!(failure.message.contains("in the middle"), "{failure}");
        domain.run(|request| request.alloc(1u8).map(drop)).unwrap();
    }

    #[test]
    fn another_thread_of_a_request_that_calls_the_library_in_the_middle_of_itself_fails_it_at_once()
    {
        let app = Hooked::app("another in the middle", |_| ());
        let domain = app.domain("one").unwrap();
        let failure = failure(domain.run(|request| {
            let ticket = request.ticket()?;
            let member = std::thread::spawn(move || {
                let _ = ticket.join(|request| {
                    take_the_latch();
                    request.alloc(1u8).map(drop)
                });
            });
            // It is over when it has failed the request, and this thread leaves with it.
            member.join().unwrap();
            Ok(())
        }));
        assert_eq!(failure.kind, Kind::Memory);
        assert!(failure.message.contains("in the middle"), "{failure}");
        domain.run(|request| request.alloc(1u8).map(drop)).unwrap();
    }

    #[test]
    fn a_request_that_was_taken_out_of_the_middle_of_the_library_is_not_committed() {
        let app = Hooked::app("out of the middle", |hooks| {
            hooks.commit = Box::new(|_, _| panic!("committed"));
        });
        let domain = app.domain("one").unwrap();
        let end_amid: [fn(&Thread); 3] = [
            |_| (),
            |thread| thread.alone.set(true),
            |thread| thread.critical.set(1),
        ];
        // As if a handler of a signal, or other code, had ended the function that was called.
        let ends = [|| Ok(()), || Err(Error::Unsealed)];
        for (end_amid, end) in end_amid
            .iter()
            .flat_map(|&amid| ends.map(|end| (amid, end)))
        {
            let failure = failure(domain.run(|_| {
                end_amid(take_the_latch());
                end()
            }));
            assert_eq!(failure.kind, Kind::Memory);
            assert!(failure.message.contains("in the middle"), "{failure}");
            domain.run(|_| Ok::<_, Error>(())).unwrap();
        }
    }

    #[test]
    fn no_call_in_the_middle_of_the_library_changes_or_commits_anything() {
        let app = Hooked::app("calls amid", |hooks| {
            hooks.commit = Box::new(|_, _| panic!("committed"));
        });
        let [one, two] = ["one", "two"].map(|key| app.domain(key).unwrap());
        let places: [fn(&Thread); 2] = [
            |_| {
                take_the_latch();
            },
            |thread| thread.alone.set(true),
        ];
        let calls: [Call; 6] = [
            |request, _| request.alloc(1u8).map(drop),
            |request, _| request.set_root::<u8>(None),
            |request, _| request.commit(false),
            |request, two| request.enter(two)?.leave(),
            |request, two| request.leave(two),
            |request, _| request.defer(|| ()),
        ];
        for (place, call) in places
            .iter()
            .flat_map(|&place| calls.map(|call| (place, call)))
        {
            let failure = failure(one.run(|request| {
                if call as usize == calls[4] as usize {
                    request.enter(two)?.keep();
                }
                place(current().unwrap());
                call(request, two)?;
                unreachable!("the request has failed")
            }));
            assert_eq!(failure.kind, Kind::Memory);
            assert!(failure.message.contains("in the middle"), "{failure}");
        }
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
