//! Running pieces of a request's work in parallel, each on its own thread.

use crate::api::ticket::Ticket;
use crate::error::Error;
use crate::os::start::start;
use crate::run::End;
use crate::run::request::Request;
use crate::state::slots::Reservation;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Where a piece of work puts its result.
struct Place<T>(*mut Option<Result<T, Error>>);

// SAFETY: each place is written by one thread, and read when that thread has ended.
unsafe impl<T: Send> Send for Place<T> {}

/// One piece of work, which must not be dropped by its thread when it cannot run: what it borrows
/// may be gone by then.
struct Piece<T, F> {
    ticket: Ticket,
    reservation: Reservation,
    work: F,
    place: Place<T>,
}

impl<T, F: FnOnce(&Request) -> T> Piece<T, F> {
    fn run(self) {
        let Self {
            ticket,
            reservation,
            work,
            place,
        } = self;
        let Some(slot) = ticket.adopt(reservation) else {
            // The request has failed, and does not wait for this thread: what the piece borrows may be
            // gone, and its place too.
            std::mem::forget(work);
            return;
        };
        // From here to the end of its part the request waits for this thread.
        let thread = match ticket.thread() {
            Ok(thread) => thread,
            Err(error) => {
                std::mem::forget(work);
                // SAFETY: written before the thread gives its slot back.
                unsafe { *place.0 = Some(Err(error)) };
                ticket.release(slot);
                return;
            }
        };
        let mut work = Some(work);
        // The request's owner gets the failure.
        let _ = ticket.work(thread, slot, &mut |request| {
            if let Some(work) = work.take() {
                let value = work(request);
                // SAFETY: the request's owner keeps the place until this thread has left.
                unsafe { *place.0 = Some(Ok(value)) };
            }
            End::Leave
        });
        std::mem::forget(work.take());
    }
}

/// How several pieces of work have ended.
pub(crate) struct Pieces<T> {
    /// The results in order; `None` where the thread was not started.
    pub(crate) outcomes: Vec<Option<Result<T, Error>>>,
    /// Why a thread was not started. The others after it were not tried.
    pub(crate) refused: Option<Error>,
}

impl Request {
    /// Runs several pieces of the request's work in parallel, each on a new thread that joins the request,
    /// and returns their results in order. When one of them fails, the whole request does.
    ///
    /// # Errors
    ///
    /// [`Error::NotInRequest`], [`Error::Limit`] (more than 256 threads in all),
    /// [`Error::System`] when a thread cannot be started: some of the pieces may have run.
    pub fn fan_out<T, F>(&self, pieces: Vec<F>) -> Result<Vec<T>, Error>
    where
        T: Send,
        F: FnOnce(&Request) -> T + Send,
    {
        let done = self.fan_out_each(pieces)?;
        if let Some(error) = done.refused {
            return Err(error);
        }
        let ended = |outcome: Option<Result<T, Error>>| outcome.unwrap_or(Err(Error::Ended));
        done.outcomes.into_iter().map(ended).collect()
    }

    /// Like [`Request::fan_out`], with the result of each piece.
    pub(crate) fn fan_out_each<T, F>(&self, pieces: Vec<F>) -> Result<Pieces<T>, Error>
    where
        T: Send,
        F: FnOnce(&Request) -> T + Send,
    {
        let (ticket, thread) = (self.ticket()?, self.thread()?);
        let mut places: Vec<Option<Result<T, Error>>> = Vec::new();
        places.resize_with(pieces.len(), || None);
        let base = places.as_mut_ptr();
        let mut refused = None;
        let mut panic = None;
        for (number, work) in pieces.into_iter().enumerate() {
            // Interrupts wait, so that a reserved slot has a thread. An error does not: the landing
            // takes back what this thread has reserved and nobody has adopted.
            let started = thread.critical(|| {
                let reservation = ticket.reserve()?;
                let piece = Piece {
                    ticket,
                    reservation,
                    work,
                    place: Place(base.wrapping_add(number)),
                };
                // SAFETY: the thread uses what it borrows only while it has joined the request, and
                // this one waits for it: in the loop below, or at the landing, before anything runs on the
                // request stack again (the trial of the C library's heap, which cannot wait, has its own).
                let start = || unsafe { start(move || piece.run()) };
                // The piece's destructor may panic: the threads before it still use these frames.
                let started = catch_unwind(AssertUnwindSafe(start));
                if !matches!(started, Ok(Ok(()))) {
                    ticket.cancel(reservation);
                }
                Ok(started)
            });
            match started {
                Ok(Ok(Ok(()))) => continue,
                Ok(Err(payload)) => panic = Some(payload),
                Ok(Ok(Err(error))) | Err(error) => refused = Some(error),
            }
            break;
        }
        ticket.wait_for_started();
        // The interrupt of a failed piece may have found this thread in the C library, and be delayed;
        // without this the caller would go on with results that are missing.
        self.thread()?.act_on_pending();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
        Ok(Pieces {
            outcomes: places,
            refused,
        })
    }
}
