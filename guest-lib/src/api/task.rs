//! Requests that outlive a call: for event loops, and to be handed from thread to thread.

use super::options::Options;
use crate::api::ticket::JoinError;
use crate::error::{Error, RunError};
use crate::failure::Kind;
use crate::os::errno;
use crate::run::defer::{run_defers, run_defers_here};
use crate::run::hot;
use crate::run::left::{end_left, outside};
use crate::run::on_commit;
use crate::run::request::Request;
use crate::run::{self, End, Outcome, Stop};
use crate::state::State;
use crate::state::domain::Domain;
use crate::thread::fork;
use crate::thread::{self, Thread};
use std::fmt;
use std::mem::MaybeUninit;

/// How a step of a task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// The request goes on with another step. Until then no thread works for it; what it wrote and
    /// what it holds stay its own.
    Suspend,
    /// The request is done: what it wrote is committed.
    Done(T),
    /// The request is given up: what it wrote is discarded.
    GiveUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    New,
    Suspended,
    Over,
}

/// A request in steps, each on any thread.
///
/// Its domains stay locked between the steps, and its deadline runs on: a task that misses it while it
/// is suspended fails, its locks are free at once, and the next step returns the failure. Dropping a
/// task gives it up. Dropped inside another request, its defers run as a part of that one.
pub struct Task {
    state: &'static State,
    domain: &'static Domain,
    options: Options,
    stage: Stage,
    forks: u32,
}

impl fmt::Debug for Task {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Task")
            .field("domain", &self.domain)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

impl Task {
    /// A request that will hold `domain`. It begins with its first step.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when there is no memory.
    pub fn new(domain: &'static Domain, options: Options) -> Result<Self, Error> {
        Ok(Self {
            // Perhaps in another request, which may be cut short at any time.
            state: thread::uninterrupted(State::take)?,
            domain,
            options,
            stage: Stage::New,
            forks: fork::generation(),
        })
    }

    /// Runs `f` as the request's next step. The first one takes the domain's lock.
    ///
    /// # Errors
    ///
    /// [`RunError::Failed`]: the request has failed, in this step or (by its deadline) before it; `f`
    /// was not run then. [`RunError::Refused`]: as [`Domain::run`]; the step can be tried again unless
    /// [`Task::is_over`] (with [`Error::Ended`], always).
    /// [`Error::Limit`]: 4096 requests of the process are suspended already; the request was given up.
    pub fn step<T>(&mut self, f: impl FnOnce(&Request) -> Step<T>) -> Result<Step<T>, JoinError> {
        if self.forks != fork::generation() {
            return Err(Error::Forked.into());
        }
        if self.stage == Stage::Over {
            return Err(Error::Ended.into());
        }
        outside()?;
        let thread = thread::of(self.domain.app())?;
        if let Some(needs) = self.options.needs() {
            thread.prepare(needs)?;
        }
        self.resume(thread).map_err(join_error)?;
        // Unless it is suspended again; also if this thread ends in the middle.
        self.stage = Stage::Over;
        let mut f = Some(f);
        // Not dropped after a cut: a deadline can end the function with a half of it written.
        let mut wants = MaybeUninit::new(Step::GiveUp);
        let outcome = run::work::<true, _>(thread, self.domain, |request| {
            if let Some(f) = f.take() {
                wants.write(f(request));
            }
            // SAFETY: it is written from the start.
            match unsafe { wants.assume_init_ref() } {
                Step::Suspend => End::Suspend,
                Step::Done(_) => End::Keep,
                Step::GiveUp => End::GiveUp,
            }
        });
        match outcome {
            Outcome::Cut => return Err(join_error(run::failed(thread))),
            Outcome::Forked => return Err(Error::Forked.into()),
            _ => {}
        }
        // SAFETY: the function has returned, so it is written as a whole.
        let wants = unsafe { wants.assume_init() };
        match outcome {
            Outcome::Cut | Outcome::Forked => {}
            Outcome::Plain => run::finish_plain(thread, self.domain, self.options.seal)
                .map_err(|stop| join_error(*stop))?,
            Outcome::Keep => {
                run::finish(thread, self.options.seal).map_err(|stop| join_error(*stop))?;
            }
            Outcome::Quiet => {
                thread.end_plain::<false>();
                thread.go_own();
            }
            Outcome::Suspend => errno::kept(|| self.suspend(thread)).map_err(join_error)?,
            Outcome::GiveUp | Outcome::Leave => run::give_up(thread),
        }
        Ok(wants)
    }

    /// Its request may have several threads: its domain, which it has just locked, is not hot.
    fn cool(&self, thread: &Thread) -> Result<(), Stop> {
        if self.domain.may_be_hot() {
            hot::cool_begun(thread, self.domain, self.state.tag())?;
        }
        Ok(())
    }

    /// Begins or resumes the request on the calling thread.
    fn resume(&mut self, thread: &Thread) -> Result<(), Stop> {
        let state = self.state;
        if self.stage == Stage::New {
            thread.begin_as(state, self.options.limits())?;
            let locked = run::lock_main(thread, self.domain).and_then(|()| self.cool(thread));
            if matches!(locked, Err(Stop::Failed(_))) {
                self.stage = Stage::Over;
            }
            return locked;
        }
        // The thread takes the request's tag before the driver forgets that it was suspended. No thread can
        // join before the driver has agreed.
        thread.attach_owner(state);
        let resumed = thread.app().backend().resume(state.tag());
        let failed = match &resumed {
            Ok(()) => thread.is_overdue(),
            Err(error) => error.raw_os_error() == Some(libc::ESTALE),
        };
        if failed {
            self.stage = Stage::Over;
            thread.note_failure(Kind::Deadline, 0, &[]);
            return Err(run::failed(thread));
        }
        if let Err(error) = resumed {
            if error.raw_os_error() == Some(libc::ENOENT) {
                // The driver does not know it: its drafts and locks are gone.
                self.stage = Stage::Over;
                run::give_up(thread);
            } else {
                // It is suspended as before: the next step tries again, or dropping the task ends it.
                thread.suspend();
                thread.go_idle();
            }
            return Err(Error::system("resuming the request")(error).into());
        }
        state.reopen();
        Ok(())
    }

    fn suspend(&mut self, thread: &Thread) -> Result<(), Stop> {
        let state = self.state;
        let suspended = thread
            .app()
            .backend()
            .suspend(state.tag(), state.deadline());
        match suspended {
            Ok(()) => {
                thread.suspend();
                thread.go_idle();
                self.stage = Stage::Suspended;
                Ok(())
            }
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => {
                thread.note_failure(Kind::Deadline, 0, &[]);
                Err(run::failed(thread))
            }
            Err(error) => {
                run::give_up(thread);
                Err(match error.raw_os_error() {
                    Some(libc::EAGAIN) => Error::Limit("4096 suspended requests of its process"),
                    _ => Error::system("suspending the request")(error),
                }
                .into())
            }
        }
    }

    /// Whether the task has ended, well or not.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if self.forks != fork::generation() {
            // In the child of a fork it is the parent's.
            return;
        }
        if self.stage == Stage::Suspended {
            end_left();
            let (app, state) = (self.domain.app(), self.state);
            // An error means that the driver has discarded it already.
            let held = state.domains();
            // Perhaps in another request, which must not be cut short in between.
            let around = thread::current();
            let after = thread::uninterrupted(|| {
                state.restore_kept();
                let _ = app.backend().abandon(state.tag(), held.as_slice());
                let after = state.take_on_commit();
                state.clear(false);
                if let Some(around) = around {
                    around.state().adopt(state);
                }
                after
            });
            if around.is_some() {
                // If it is cut short, it runs the remaining ones at its end.
                run_defers_here(state);
                on_commit::end_here(state, after);
                return;
            }
            if let Ok(thread) = thread::of(app) {
                thread.attach_ended(state);
                run_defers(thread, state);
                on_commit::forget_rest(thread, after.as_ref());
                thread.go_idle();
                on_commit::call_due(thread, state, after);
            } else {
                run_defers_here(state);
                on_commit::end_here(state, after);
            }
        }
        thread::uninterrupted(|| self.state.give_back());
    }
}

fn join_error(stop: Stop) -> JoinError {
    match stop {
        Stop::Failed(failure) => RunError::Failed(failure),
        Stop::Refused(error) => RunError::Refused(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ticket::Ticket;
    use crate::mock::MockBackend;
    use crate::shared::control::Control;
    use std::io;
    use std::ptr;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, Mutex};

    #[test]
    fn request_cut_short_while_dropping_a_task_drops_it() {
        let app = MockBackend::app("cut in a drop", |hooks| {
            hooks.abandon = Box::new(|_| {
                // The request around it fails by another thread's error, in the middle of this.
                let thread = thread::current().unwrap();
                // SAFETY: the thread is registered.
                unsafe { Control::new(thread.control()) }.set_failed(thread.tag());
                // SAFETY: the library's own signal.
                unsafe { libc::raise(crate::os::signals::interrupt()) };
            });
        });
        let (outer, inner) = (app.domain("outer").unwrap(), app.domain("inner").unwrap());
        let mut task = Task::new(inner, Options::default()).unwrap();
        let undone = Arc::new(AtomicU32::new(0));
        let undo = Arc::clone(&undone);
        task.step(|request| {
            let undo = move || {
                undo.fetch_add(1, Ordering::SeqCst);
            };
            request.defer(undo).unwrap();
            Step::<()>::Suspend
        })
        .unwrap();
        let state = task.state;
        assert_ne!(state.tag(), 0);
        let task = std::cell::Cell::new(Some(task));
        let failed: Result<(), RunError<Error>> = outer.run(|_| {
            drop(task.take());
            unreachable!("the request has failed")
        });
        assert!(matches!(failed, Err(RunError::Failed(_))), "{failed:?}");
        assert!(state.is_at_rest());
        assert_eq!(undone.load(Ordering::SeqCst), 1);
        inner.run(|request| request.alloc(1u8).map(drop)).unwrap();
    }

    #[test]
    fn task_dropped_in_a_request_runs_defers_once() {
        let app = MockBackend::app("task dropped in a request", |_| ());
        let (outer, inner) = (app.domain("outer").unwrap(), app.domain("inner").unwrap());
        for fails in [false, true] {
            let undone = Arc::new(AtomicU32::new(0));
            let mut task = Task::new(inner, Options::default()).unwrap();
            task.step(|request| {
                for _ in 0..2 {
                    let undo = Arc::clone(&undone);
                    request
                        .defer(move || {
                            undo.fetch_add(1, Ordering::SeqCst);
                        })
                        .unwrap();
                }
                Step::<()>::Suspend
            })
            .unwrap();
            let outcome = outer.run(|request| {
                drop(task);
                assert_eq!(undone.load(Ordering::SeqCst), 2);
                if fails {
                    request.fail("this request fails");
                }
                Ok::<_, Error>(())
            });
            assert_eq!(outcome.is_err(), fails);
            assert_eq!(undone.load(Ordering::SeqCst), 2);
        }
    }

    #[test]
    fn task_dropped_by_a_defer_runs_all_its_defers() {
        let app = MockBackend::app("task dropped in a defer", |_| ());
        let (first, second) = (app.domain("first").unwrap(), app.domain("second").unwrap());
        let suspended = |domain, undo: Vec<Box<dyn FnOnce() + Send>>| {
            let mut task = Task::new(domain, Options::default()).unwrap();
            task.step(|request| {
                for undo in undo {
                    request.defer(undo).unwrap();
                }
                Step::<()>::Suspend
            })
            .unwrap();
            task
        };
        let undone = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&undone);
        let inner = suspended(
            second,
            vec![
                Box::new(move || {
                    count.fetch_add(1, Ordering::SeqCst);
                }),
                // The newest runs first.
                // SAFETY: it is not; that is the test.
                Box::new(|| unsafe {
                    std::hint::black_box(ptr::null_mut::<u32>()).write_volatile(1);
                }),
            ],
        );
        drop(suspended(first, vec![Box::new(move || drop(inner))]));
        assert_eq!(undone.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn request_starts_with_an_open_latch() {
        let app = MockBackend::app("latch left taken", |_| ());
        let domain = app.domain("one").unwrap();
        let mut task = Task::new(domain, Options::default()).unwrap();
        // As a defer leaves it that runs into the end of the stack inside the library.
        let taken = task.state.latch.take(u32::MAX >> 1, |_| false);
        assert_eq!(taken, crate::os::latch::Take::Taken);
        let done = task.step(|request| Step::Done(request.alloc(1u8).map(drop).is_ok()));
        assert_eq!(done.unwrap(), Step::Done(true));
    }

    #[test]
    fn refused_resume_leaves_task_suspended_and_closed() {
        static TICKET: Mutex<Option<Ticket>> = Mutex::new(None);
        let tries = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&tries);
        let app = MockBackend::app("refused resume", |hooks| {
            hooks.resume = Box::new(move |_| {
                let ticket = TICKET.lock().unwrap().take().unwrap();
                let joined = std::thread::spawn(move || ticket.join(|_| ())).join();
                let joined = joined.unwrap();
                assert!(
                    matches!(joined, Err(RunError::Refused(Error::Ended))),
                    "{joined:?}"
                );
                *TICKET.lock().unwrap() = Some(ticket);
                match count.fetch_add(1, Ordering::SeqCst) {
                    0 => Err(io::Error::from_raw_os_error(libc::EIO)),
                    _ => Ok(()),
                }
            });
        });
        let domain = app.domain("one").unwrap();
        let mut task = Task::new(domain, Options::default()).unwrap();
        task.step(|request| {
            *TICKET.lock().unwrap() = Some(request.ticket().unwrap());
            Step::<()>::Suspend
        })
        .unwrap();
        let refused = task.step(|_| -> Step<()> { unreachable!("not resumed") });
        match refused {
            Err(RunError::Refused(Error::System { source, .. })) => {
                assert_eq!(source.raw_os_error(), Some(libc::EIO));
            }
            other => panic!("{other:?}"),
        }
        assert!(!task.is_over());
        assert!(domain.holder() != 0, "it keeps its domain");
        // The thread is free for other requests, and carries nothing of the task.
        let other = app.domain("two").unwrap();
        other.run(|request| request.alloc(1u8).map(drop)).unwrap();
        let ticket = TICKET.lock().unwrap().unwrap();
        let last = task.step(|_| {
            let joined = std::thread::spawn(move || ticket.join(|_| 5)).join();
            Step::Done(joined.unwrap().unwrap())
        });
        assert_eq!(last.unwrap(), Step::Done(5));
        assert_eq!(tries.load(Ordering::SeqCst), 2);
        assert_eq!(domain.holder(), 0);
    }
}
