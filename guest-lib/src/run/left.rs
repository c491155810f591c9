//! Ending a request that its thread has left by `longjmp`.

use super::defer::{release_left, run_defers};
use super::restore::{Cut, restore};
use super::{Stop, failed, failed_member};
use crate::error::Error;
use crate::failure::Kind;
use crate::thread::{self, LEFT, Phase, Thread};

/// Ends the request that the calling thread has left without an end, if it has.
#[cold]
pub(crate) fn end_left() {
    let Some(thread) = thread::current() else {
        return;
    };
    if thread.has_left_function() || thread.has_left_library() {
        end(thread);
    }
}

/// For calls that change what outlives a request, and that one which fails could not take back.
///
/// # Errors
///
/// [`Error::Nested`] where a request runs on the calling thread.
pub(crate) fn outside() -> Result<(), Error> {
    end_left();
    match thread::current() {
        Some(_) => Err(Error::Nested),
        None => Ok(()),
    }
}

/// The thread that works for a request, for code that calls the library in it.
#[inline]
pub(crate) fn working() -> Option<&'static Thread> {
    let thread = thread::current()?;
    if thread.is_on_request_stack() {
        return Some(thread);
    }
    elsewhere(thread)
}

/// The same on another stack than the request's: one of the function's own, that of a signal handler, or that of another task.
#[cold]
fn elsewhere(thread: &'static Thread) -> Option<&'static Thread> {
    if thread.has_left_function() {
        end(thread);
        return None;
    }
    thread.is_own().then_some(thread)
}

/// The failure is what the thread's last one was: the call that ran the request does not return it.
#[cold]
fn end(thread: &Thread) {
    if !thread.is_own() {
        return;
    }
    let was = thread.phase();
    thread.set_phase(Phase::Outside);
    if was != Phase::Deferring && thread.state().tag() != 0 {
        thread.note_failure(Kind::ThreadDeath, 0, LEFT);
        let stop = if thread.has_joined() {
            failed_member(thread)
        } else {
            failed(thread)
        };
        if let Stop::Failed(failure) = stop {
            thread::keep_failure(failure);
        }
        return;
    }
    // It was over: only its mutexes and defers may be left.
    thread.note_failure(Kind::ThreadDeath, 0, LEFT);
    thread.land_in_defer();
    restore(thread, &Cut::latest(thread));
    thread.state().latch.reset();
    release_left(thread);
    if thread.has_joined() {
        // The defers are those of the thread that owns the request.
        thread.leave();
        return;
    }
    run_defers(thread, thread.state());
    thread.go_idle();
}
