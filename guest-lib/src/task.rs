//! Requests that outlive a call: for event loops, and to be handed from thread to thread.

use crate::defer::{run_defers, run_defers_here};
use crate::domain::Domain;
use crate::error::{Error, RunError};
use crate::failure::Kind;
use crate::fork;
use crate::pkru::Key;
use crate::request::{Options, Request};
use crate::run::{self, End, Outcome, Stop};
use crate::state::State;
use crate::thread::{self, Thread};
use crate::ticket::JoinError;
use std::fmt;

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
/// task gives it up. Dropped inside of another request, its defers run as a part of that one.
pub struct Task {
    state: &'static State,
    domain: &'static Domain,
    options: Options,
    key: Key,
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
            state: State::take()?,
            domain,
            options,
            key: Key::take(),
            stage: Stage::New,
            forks: fork::generation(),
        })
    }

    /// Runs `f` as the request's next step. The first one takes the domain's lock.
    ///
    /// # Errors
    ///
    /// [`RunError::Failed`]: the request has failed, in this step or (by its deadline) before it; `f`
    /// was not run then. [`RunError::Refused`]: as [`Domain::run`]; with [`Error::Nested`] and
    /// [`Error::LockTimeout`] the step can be tried again, with [`Error::Ended`] the task is over.
    pub fn step<T>(&mut self, f: impl FnOnce(&Request) -> Step<T>) -> Result<Step<T>, JoinError> {
        if self.forks != fork::generation() {
            return Err(Error::Forked.into());
        }
        if self.stage == Stage::Over {
            return Err(Error::Ended.into());
        }
        if thread::current().is_some() {
            return Err(Error::Nested.into());
        }
        let thread = thread::of(self.domain.app())?;
        self.take_up(thread).map_err(join_error)?;
        // Unless it is suspended again; also if this thread ends in the middle.
        self.stage = Stage::Over;
        let mut f = Some(f);
        let mut wants = Step::GiveUp;
        let outcome = run::work(thread, self.domain, &mut |request| {
            if let Some(f) = f.take() {
                wants = f(request);
            }
            match wants {
                Step::Suspend => End::Suspend,
                Step::Done(_) => End::Keep,
                Step::GiveUp => End::GiveUp,
            }
        });
        match outcome {
            Outcome::Cut => return Err(join_error(run::failed(thread))),
            Outcome::Forked => return Err(Error::Forked.into()),
            Outcome::Wants(End::Keep) => {
                run::finish(thread, self.options.seal).map_err(join_error)?;
            }
            Outcome::Wants(End::Suspend) => self.suspend(thread).map_err(join_error)?,
            Outcome::Wants(_) => run::give_up(thread),
        }
        Ok(wants)
    }

    /// Begins or resumes the request on the calling thread.
    fn take_up(&mut self, thread: &Thread) -> Result<(), Stop> {
        let state = self.state;
        if self.stage == Stage::New {
            thread.begin_as(state, self.key.number(), &self.options)?;
            let locked = run::lock_main(thread, self.domain);
            if matches!(locked, Err(Stop::Failed(_))) {
                self.stage = Stage::Over;
            }
            return locked;
        }
        state.reopen();
        thread.lead(state);
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
            // The driver does not know it: nothing of it is left.
            self.stage = Stage::Over;
            run::give_up(thread);
            return Err(Error::system("resuming the request")(error).into());
        }
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
                thread.rest();
                self.stage = Stage::Suspended;
                Ok(())
            }
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => {
                thread.note_failure(Kind::Deadline, 0, &[]);
                Err(run::failed(thread))
            }
            Err(error) => {
                run::give_up(thread);
                Err(Error::system("suspending the request")(error).into())
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
            let (app, state) = (self.domain.app(), self.state);
            // An error means that the driver has nothing of it any more.
            let held = state.domains();
            let _ = app.backend().abandon(state.tag(), held.as_slice());
            state.clear();
            match thread::current().map_or_else(|| thread::of(app).ok(), |_| None) {
                Some(thread) => {
                    thread.attend();
                    run_defers(thread, state);
                    thread.rest();
                }
                None => run_defers_here(state),
            }
        }
        self.state.give_back();
    }
}

fn join_error(stop: Stop) -> JoinError {
    match stop {
        Stop::Failed(failure) => RunError::Failed(failure),
        Stop::Refused(error) => RunError::Refused(error),
    }
}
