//! Several pieces of a request's work at once, each on a thread of its own.

use crate::error::Error;
use crate::request::Request;
use crate::run::End;
use crate::ticket::Ticket;
use std::io;
use std::thread::{Builder, JoinHandle};

/// Where a piece of work puts what it gives.
struct Place<T>(*mut Option<Result<T, Error>>);

// SAFETY: each place is written by one thread, and read when that thread has ended.
unsafe impl<T: Send> Send for Place<T> {}

/// One piece of work, which must not be dropped by its thread when it cannot run: what it borrows
/// may be gone by then.
struct Piece<T, F> {
    ticket: Ticket,
    slot: usize,
    work: F,
    place: Place<T>,
}

impl<T, F: FnOnce(&Request) -> T> Piece<T, F> {
    fn run(self) {
        let Self {
            ticket,
            slot,
            work,
            place,
        } = self;
        let mut work = Some(work);
        let outcome = ticket.work(Some(slot), &mut |request| {
            if let Some(work) = work.take() {
                let value = work(request);
                // SAFETY: the request's owner keeps the place until this thread has left.
                unsafe { *place.0 = Some(Ok(value)) };
            }
            End::Leave
        });
        let left = work.take();
        if let (Err(crate::RunError::Refused(error)), true) = (outcome, left.is_some()) {
            // The request has failed, or waits for this thread to end: both leave the place alone.
            // SAFETY: written before the thread ends; a failed request leaks the place.
            unsafe { *place.0 = Some(Err(error)) };
        }
        std::mem::forget(left);
    }
}

impl Request {
    /// Does several pieces of the request's work at once: each on a new thread that joins the
    /// request, and returns what they gave, in order. When one of them fails, the whole request does.
    ///
    /// # Errors
    ///
    /// [`Error::NotInRequest`], [`Error::Limit`] (more than 256 threads in all),
    /// [`Error::System`] when a thread cannot be made: some of the pieces may have been done.
    pub fn fan_out<T, F>(&self, pieces: Vec<F>) -> Result<Vec<T>, Error>
    where
        T: Send,
        F: FnOnce(&Request) -> T + Send,
    {
        let ticket = self.ticket()?;
        let mut places: Vec<Option<Result<T, Error>>> = Vec::new();
        places.resize_with(pieces.len(), || None);
        let base = places.as_mut_ptr();
        let mut threads = Vec::with_capacity(pieces.len());
        let mut refused = None;
        for (number, work) in pieces.into_iter().enumerate() {
            // Once a slot is reserved its thread must start, or the request would wait for ever.
            let started = self.critical(|| {
                let slot = ticket.reserve()?;
                let piece = Piece {
                    ticket,
                    slot,
                    work,
                    place: Place(base.wrapping_add(number)),
                };
                // SAFETY: the thread uses what it borrows only while it has joined the request, and
                // the request waits for it: in the loop below, or before its stack is used again.
                unsafe { start(piece) }.inspect_err(|_| ticket.release(slot))
            });
            match started {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        for thread in threads {
            // A panic fails the request; this thread does not come here then.
            let _ = thread.join();
        }
        if let Some(error) = refused {
            return Err(error);
        }
        let gave = |place: Option<Result<T, Error>>| place.unwrap_or(Err(Error::Ended));
        places.into_iter().map(gave).collect()
    }
}

/// # Safety
///
/// What the piece borrows outlives its part in the request.
unsafe fn start<T: Send, F: FnOnce(&Request) -> T + Send>(
    piece: Piece<T, F>,
) -> Result<JoinHandle<()>, Error> {
    let failed = |error: io::Error| Error::system("starting a thread")(error);
    // SAFETY: passed on to the caller.
    unsafe { Builder::new().spawn_unchecked(move || piece.run()) }.map_err(failed)
}
