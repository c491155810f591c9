//! Running and dropping defers.

use super::restore::{Cut, restore};
use crate::os::mutex::RawMutex;
use crate::os::switch::LANDED;
use crate::shared::pkru;
use crate::state::State;
use crate::state::deferred::Deferred;
use crate::thread::{Phase, Thread};
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What becomes of a request's defers when it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Run,
    /// The request was committed.
    Forget,
}

struct Step<'a> {
    thread: &'a Thread,
    deferred: Option<Deferred>,
    fate: Fate,
    done: bool,
}

/// Runs a request's defers, newest first, each on the thread's request stack so that an error in one
/// ends only that one. Returns how many failed.
pub(crate) fn run_defers(thread: &Thread, state: &State) -> u32 {
    let failed = end_defers(thread, || state.newest_defer(), Fate::Run);
    end_dropped(thread, state);
    failed
}

/// Releases the mutexes that the thread has locked in the request with that tag, newest first, after what they guard has been put
/// right. Returns how many of the functions that do so failed: each ends alone, as a defer does.
pub(crate) fn release_mutexes(thread: &Thread, tag: u64) -> u32 {
    let mut failed = 0;
    while let Some(locked) = thread.take_mutex(tag) {
        let repair = locked.repair;
        let mut repair = repair.map(|repair| Deferred::raw(repair, locked.argument));
        failed += end_defers(thread, || repair.take(), Fate::Run);
        // The mutex is memory of the server, where a stray write may have been.
        let mut release = Some(Deferred::raw(release, locked.mutex.cast_mut().cast()));
        failed += end_defers(thread, || release.take(), Fate::Run);
    }
    failed
}

unsafe extern "C-unwind" fn release(mutex: *mut c_void) {
    // SAFETY: release_mutexes() passes a mutex that the thread has; mutexes outlive the requests that lock them.
    unsafe { &*mutex.cast::<RawMutex>() }.release();
}

/// Drops a request's defers without running them. What they own is dropped on the thread's request
/// stack, so an error there is contained like one in a defer.
pub(crate) fn forget_defers(thread: &Thread, state: &State) {
    end_defers(thread, || state.newest_defer(), Fate::Forget);
    end_dropped(thread, state);
}

/// Runs the remaining defers of tasks that were dropped in the request, also by one of its defers.
fn end_dropped(thread: &Thread, state: &State) {
    let mut is_last = false;
    while !is_last {
        is_last = true;
        for dropped in state.take_dropped() {
            is_last = false;
            run_defers(thread, dropped);
            dropped.give_back();
        }
    }
}

fn end_defers(thread: &Thread, mut next: impl FnMut() -> Option<Deferred>, fate: Fate) -> u32 {
    let mut failed = 0;
    while let Some(deferred) = next() {
        let mut step = Step {
            thread,
            deferred: Some(deferred),
            fate,
            done: false,
        };
        // SAFETY: the request stack is free; enter() does not unwind.
        let code = unsafe { thread.on_request_stack(enter, (&raw mut step).cast()) };
        let cut = code == LANDED;
        if cut {
            // The thread keeps the keys of the code that was cut short, and a signal handler has none.
            pkru::close();
            restore(thread, &Cut::latest(thread));
            // The library may have been at work.
            thread.state().latch.reset();
        }
        // Cut short, what it owns is in an unknown state, and stays.
        std::mem::forget(step.deferred.take());
        if cut || !step.done {
            failed += 1;
        }
    }
    failed
}

unsafe extern "C" fn enter(argument: *mut c_void) -> u32 {
    // SAFETY: end_defers() passes this, which lives until this returns or is cut short.
    let step = unsafe { &mut *argument.cast::<Step<'_>>() };
    let thread = step.thread;
    if let Some(deferred) = step.deferred.take() {
        thread.set_phase(Phase::Deferring);
        step.done = match step.fate {
            Fate::Run => deferred.run(),
            Fate::Forget => catch_unwind(AssertUnwindSafe(|| drop(deferred))).is_ok(),
        };
    }
    thread.set_phase(Phase::Outside);
    0
}

/// Runs a request's defers on the current stack, inside another request: an error in one fails that request.
pub(crate) fn run_defers_here(state: &State) {
    while let Some(deferred) = state.newest_defer() {
        deferred.run();
    }
}
