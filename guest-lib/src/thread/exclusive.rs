//! One thread of a request at a time in the request's lists and heaps.

use super::landing::fail_request;
use super::{Phase, Thread, uninterrupted};
use crate::failure::{Kind, LOST};
use crate::os::latch::Take;
use crate::shared::pkru;
use std::sync::atomic::{Ordering, compiler_fence};

/// What the failure says when the library was called while it was at work: by a signal handler, or by a
/// jump through a bad pointer.
pub(crate) const REENTRANT: &[u8] = b"the library was called in the middle of its own work";

impl Thread {
    /// Runs code that uses the request's lists or heaps: one thread of the request at a time, which
    /// may come back here from inside. Goes to the landing instead if the request fails while another
    /// thread has them. A request that no other thread can join needs no latch for that.
    #[inline]
    pub(crate) fn exclusive<T>(&self, code: impl FnOnce() -> T) -> T {
        if self.marks.exclusive.get() {
            return code();
        }
        let state = self.state();
        let alone = state.is_alone();
        if !alone {
            self.take_latch();
        }
        self.marks.exclusive.set(true);
        // A signal handler sees how far this is.
        compiler_fence(Ordering::SeqCst);
        let value = code();
        compiler_fence(Ordering::SeqCst);
        self.marks.exclusive.set(false);
        // If it is not alone any more, share() has taken the latch.
        if !alone || !state.is_alone() {
            state.latch.open();
        }
        value
    }

    /// The same for a request that is alone, and stays so: `code` is the library's alone.
    #[expect(
        clippy::inline_always,
        reason = "on the way of each request that writes"
    )]
    #[inline(always)]
    pub(crate) fn exclusive_alone<T>(&self, code: impl FnOnce() -> T) -> T {
        self.marks.exclusive.set(true);
        compiler_fence(Ordering::SeqCst);
        let value = code();
        compiler_fence(Ordering::SeqCst);
        self.marks.exclusive.set(false);
        value
    }

    /// Takes the latch, or goes to the landing.
    #[cold]
    fn take_latch(&self) {
        let state = self.state();
        let give_up = |timed_out| {
            self.must_abort() || (timed_out && uninterrupted(|| state.members.has_lost()))
        };
        loop {
            let take = state.latch.take(self.number, give_up);
            if take == Take::Taken {
                return;
            }
            // Nothing has started here yet, so even critical code can be cut short.
            if self.phase() == Phase::Running {
                if self.must_abort() {
                    fail_request(Kind::Deadline, 0, &[]);
                }
                if take == Take::Own {
                    fail_request(Kind::Memory, 0, REENTRANT);
                }
                fail_request(Kind::ThreadDeath, 0, LOST);
            }
            if take == Take::Own {
                // On its way out of the request with the latch that it has, and nothing begun under it.
                return;
            }
        }
    }

    /// Lets other threads join the request, which the thread works for.
    pub(crate) fn share(&self) {
        let state = self.state();
        if state.is_alone() {
            if self.marks.exclusive.get() {
                // In a check of the server, or where the library was called in the middle of its own work.
                state.latch.take(self.number, |_| true);
            }
            state.share();
            // It may meet their drafts.
            pkru::open(pkru::ours(), state.key());
        }
    }

    /// Whether the thread left the library's code in the middle and never returned to it.
    pub(crate) fn is_inside_library(&self) -> bool {
        self.marks.exclusive.get()
            || self.is_critical()
            || self.state().latch.is_held_by(self.number)
    }

    /// Fails the request if a signal handler or a bad jump calls the library while it is at work: the data
    /// it would change or commit is half changed. An invariant's check is called by the library and may
    /// call it.
    pub(crate) fn reject_reentry(&self) {
        // Critical code alone leaves no list or heap half changed, and drops values of the server, which
        // may call the library.
        let is_inside_library =
            self.marks.exclusive.get() || self.state().latch.is_held_by(self.number);
        if is_inside_library && self.phase() == Phase::Running && !self.marks.checking.get() {
            fail_request(Kind::Memory, 0, REENTRANT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::mock::MockBackend;
    use crate::run::request::Request;
    use crate::state::domain::Domain;
    use crate::thread::current;
    use crate::thread::tests::failure;
    use std::sync::mpsc;

    type Call = fn(&Request, &'static Domain) -> Result<(), Error>;

    /// As a jump to other code leaves it between two instructions of `exclusive`.
    fn take_the_latch() -> &'static Thread {
        let thread = current().unwrap();
        let take = thread.state().latch.take(thread.number, |_| false);
        assert_eq!(take, Take::Taken);
        thread
    }

    #[test]
    fn latch_is_taken_from_the_first_ticket_on() {
        let app = MockBackend::app("first ticket", |_| ());
        let domain = app.domain("one").unwrap();
        for _ in 0..2 {
            let outcome = domain.run(|request| {
                let thread = current().unwrap();
                let is_held = || thread.state().latch.is_held_by(thread.number);
                thread.exclusive(|| {
                    assert!(!is_held() && thread.state().is_alone());
                    // As a check of the server may.
                    request.ticket()?;
                    assert!(is_held() && !thread.state().is_alone());
                    Ok::<_, Error>(())
                })?;
                assert!(!is_held());
                thread.exclusive(|| assert!(is_held()));
                assert!(!is_held());
                Ok::<_, Error>(())
            });
            outcome.unwrap();
        }
    }

    #[test]
    fn reentry_fails_request() {
        let app = MockBackend::app("in the middle", |_| ());
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
    fn reentry_from_member_fails_request() {
        let app = MockBackend::app("another in the middle", |_| ());
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
    fn request_that_left_the_library_midway_is_not_committed() {
        let app = MockBackend::app("out of the middle", |hooks| {
            hooks.commit = Box::new(|_, _| panic!("committed"));
        });
        let domain = app.domain("one").unwrap();
        let end_inside: [fn(&Thread); 3] = [
            |_| (),
            |thread| thread.marks.exclusive.set(true),
            |thread| thread.marks.critical.set(1),
        ];
        // As if a signal handler had ended the function that was called.
        let ends = [|| Ok(()), || Err(Error::Unsealed)];
        for (end_inside, end) in end_inside
            .iter()
            .flat_map(|&end_inside| ends.map(|end| (end_inside, end)))
        {
            let failure = failure(domain.run(|_| {
                end_inside(take_the_latch());
                end()
            }));
            assert_eq!(failure.kind, Kind::Memory);
            assert!(failure.message.contains("in the middle"), "{failure}");
            domain.run(|_| Ok::<_, Error>(())).unwrap();
        }
    }

    #[test]
    fn reentrant_calls_change_and_commit_nothing() {
        let app = MockBackend::app("reentrant calls", |hooks| {
            hooks.commit = Box::new(|_, _| panic!("committed"));
        });
        let [one, two] = ["one", "two"].map(|key| app.domain(key).unwrap());
        let places: [fn(&Thread); 2] = [
            |_| {
                take_the_latch();
            },
            |thread| thread.marks.exclusive.set(true),
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
    fn thread_ending_with_the_latch_fails_waiters() {
        let app = MockBackend::app("lost latch", |_| ());
        let domain = app.domain("one").unwrap();
        let (inside, is_inside) = mpsc::channel();
        let failure = failure(domain.run(|request| {
            let ticket = request.ticket()?;
            let lost = std::thread::spawn(move || {
                let _ = ticket.join(|_| {
                    current().unwrap().exclusive(|| {
                        inside.send(()).unwrap();
                        // SAFETY: ends the thread without unwinding; what it owns is leaked.
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
