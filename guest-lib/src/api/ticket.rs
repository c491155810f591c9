//! Several threads for one request: tickets, by which others join it.

use crate::error::{Error, RunError};
use crate::run::hot;
use crate::run::left::outside;
use crate::run::request::Request;
use crate::run::{self, Body, End, Outcome, Stop};
use crate::state::State;
use crate::state::domain::Domain;
use crate::state::slots::Reservation;
use crate::thread::fork;
use crate::thread::{self, Thread};
use std::convert::Infallible;
use std::fmt;
use std::mem::MaybeUninit;

/// How a thread's part in a request, or a step of a [`crate::Task`], ended when it did not end well.
pub type JoinError = RunError<Infallible>;

/// Lets other threads work for a request.
///
/// A ticket is good until its request ends; it can be copied, sent, and used by any number of
/// threads, up to 256 at a time.
#[derive(Clone, Copy)]
pub struct Ticket {
    pub(crate) state: &'static State,
    pub(crate) tag: u64,
    pub(crate) domain: &'static Domain,
    pub(crate) forks: u32,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Ticket")
            .field("tag", &self.tag)
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

impl Ticket {
    /// Works for the request on the calling thread: runs `f` on its request stack and returns when
    /// that is done. The request ends only after all threads have left it.
    ///
    /// The thread may do what the request may: write to every domain that the request holds,
    /// whichever thread entered it, enter and leave domains, allocate, commit. When any thread of the
    /// request fails, all come to their landings, and get the same failure.
    /// A panic of `f` fails the request, too.
    ///
    /// # Errors
    ///
    /// [`RunError::Failed`], or [`RunError::Refused`] with [`Error::Ended`] (the request is over, or
    /// has failed), [`Error::Nested`] (the thread has a request), [`Error::Limit`],
    /// [`Error::Forked`], [`Error::System`]: `f` was not run, but for [`Error::Forked`] after a fork
    /// in `f`.
    pub fn join<T>(&self, f: impl FnOnce(&Request) -> T) -> Result<T, JoinError> {
        let mut f = Some(f);
        // Not dropped after a cut: a deadline can end the function with a half of it written.
        let mut value = MaybeUninit::uninit();
        let thread = self.thread()?;
        let slot = self.state.members.enter();
        let slot = slot.ok_or(Error::Limit("256 threads"))?;
        if !self.state.is_open(self.tag) {
            self.release(slot);
            return Err(Error::Ended.into());
        }
        self.work(thread, slot, &mut |request| {
            if let Some(f) = f.take() {
                value.write(f(request));
            }
            End::Leave
        })?;
        // SAFETY: the thread's part has ended in order, so the function has returned, and the value is written.
        Ok(unsafe { value.assume_init() })
    }

    /// Keeps a slot for a thread that the calling one is about to start, and that will call
    /// [`Ticket::adopt`].
    pub(crate) fn reserve(&self) -> Result<Reservation, Error> {
        let reservation = self.state.members.reserve();
        reservation.ok_or(Error::Limit("256 threads"))
    }

    /// Gives a reserved slot back that no thread will use.
    pub(crate) fn cancel(&self, reservation: Reservation) {
        self.state.members.cancel(reservation);
    }

    /// Waits until the threads that the calling one has reserved slots for have left.
    pub(crate) fn wait_for_started(&self) {
        self.state.members.wait_for_started(thread::sweep);
    }

    /// Makes a reserved slot the calling thread's. `None` if the request does not wait for it any more.
    pub(crate) fn adopt(&self, reservation: Reservation) -> Option<usize> {
        self.state.members.adopt(reservation)
    }

    /// Gives the calling thread's slot back.
    pub(crate) fn release(&self, slot: usize) {
        self.state.members.leave(slot);
    }

    /// The calling thread, if it can work for the request.
    pub(crate) fn thread(&self) -> Result<&'static Thread, Error> {
        if self.forks != fork::generation() {
            return Err(Error::Forked);
        }
        outside()?;
        thread::of(self.domain.app())
    }

    /// Runs `body` as a part of the request, in a slot that the thread has, and leaves it.
    pub(crate) fn work(
        &self,
        thread: &Thread,
        slot: usize,
        body: &mut Body<'_>,
    ) -> Result<(), JoinError> {
        thread.join(self.state, slot);
        match run::work::<true, _>(thread, self.domain, body) {
            Outcome::Forked => Err(Error::Forked.into()),
            Outcome::Cut => Err(match run::failed_member(thread) {
                Stop::Failed(failure) => RunError::Failed(failure),
                Stop::Refused(error) => RunError::Refused(error),
            }),
            // It wants to leave.
            _ => {
                thread.leave();
                Ok(())
            }
        }
    }
}

impl Request {
    /// A ticket, by which other threads can work for this request.
    ///
    /// # Errors
    ///
    /// [`Error::NotInRequest`].
    pub fn ticket(&self) -> Result<Ticket, Error> {
        let thread = self.thread()?;
        hot::leave(thread);
        thread.share();
        let state = thread.state();
        Ok(Ticket {
            state,
            tag: state.tag(),
            domain: self.domain(),
            forks: fork::generation(),
        })
    }
}
