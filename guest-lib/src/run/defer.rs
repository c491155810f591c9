//! Running and dropping defers.

use super::restore::{Cut, restore};
use crate::os::identity::thread_number;
use crate::os::mutex::RawMutex;
use crate::os::switch::LANDED;
use crate::shared::pkru;
use crate::state::State;
use crate::state::deferred::Deferred;
use crate::thread::mutexes::Repair;
use crate::thread::{Phase, Thread};
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// How long a repair may take: others wait for its mutex.
const PATIENCE: Duration = Duration::from_secs(5);

/// Most repairs after one error. Those of mutexes that repairs lock and that fail in turn could be many.
const REPAIRS_MAX: u32 = 32;

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
    thread.set_releasing(tag);
    let failed = release_noted(thread);
    thread.set_releasing(0);
    failed
}

/// The same after a defer or a repair was left by `longjmp`.
pub(super) fn release_left(thread: &Thread) {
    thread.clear_limit();
    thread.settle_mutexes(true);
    release_noted(thread);
    thread.set_releasing(0);
}

/// Releases all that have to be released. A repair that fails may have locked others: they come first, as the newest, and find locked
/// what is being put right.
fn release_noted(thread: &Thread) -> u32 {
    let (mut failed, mut repairs) = (0, 0);
    while let Some(locked) = thread.due_mutex() {
        if let Some(repair) = locked.repair.filter(|_| repairs < REPAIRS_MAX) {
            repairs += 1;
            let repair = Deferred::raw(repair, locked.argument);
            if !end_defer(thread, repair, Fate::Run, Some(PATIENCE)) {
                failed += 1;
                continue;
            }
        }
        let call = if thread.forget_due_mutex(locked.mutex) {
            release
        } else {
            release_own as Repair
        };
        // The mutex is memory of the server, where a stray write may have been.
        let release = Deferred::raw(call, locked.mutex.cast_mut().cast());
        let released = end_defer(thread, release, Fate::Run, None);
        failed += u32::from(!released);
    }
    failed
}

unsafe extern "C-unwind" fn release(mutex: *mut c_void) {
    // SAFETY: release_noted() passes a mutex that the thread has; mutexes outlive the requests that lock them.
    unsafe { &*mutex.cast::<RawMutex>() }.release();
}

/// Releases a mutex that its repair has released, and may have locked again.
unsafe extern "C-unwind" fn release_own(mutex: *mut c_void) {
    // SAFETY: as above.
    let mutex = unsafe { &*mutex.cast::<RawMutex>() };
    if mutex.is_owned_by(thread_number()) {
        mutex.release();
    }
}

/// Drops a request's defers without running them. What they own is dropped on the thread's request
/// stack, so an error there is contained like one in a defer.
pub(crate) fn forget_defers(thread: &Thread, state: &State) {
    end_defers(thread, || state.newest_defer(), Fate::Forget);
    end_dropped(thread, state);
}

/// Drops one without running it; false if that has failed.
pub(super) fn forget(thread: &Thread, deferred: Deferred) -> bool {
    let done = end_defer(thread, deferred, Fate::Forget, None);
    if !done {
        release_noted(thread);
    }
    done
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
        if !end_defer(thread, deferred, fate, None) {
            failed += 1 + release_noted(thread);
        }
    }
    failed
}

/// Ends one, within that time if there is a limit and a timer; false if it has failed.
fn end_defer(thread: &Thread, deferred: Deferred, fate: Fate, limit: Option<Duration>) -> bool {
    let mut step = Step {
        thread,
        deferred: Some(deferred),
        fate,
        done: false,
    };
    thread.forget_panics();
    if let Some(limit) = limit {
        // Without a timer it is no worse off than a defer.
        thread.set_limit(limit);
    }
    // SAFETY: the request stack is free; enter() does not unwind.
    let code = unsafe { thread.on_request_stack(enter, (&raw mut step).cast()) };
    if limit.is_some() {
        thread.clear_limit();
    }
    let cut = code == LANDED;
    if cut {
        // The thread keeps the keys of the code that was cut short, and a signal handler has none.
        pkru::close();
        thread.land_in_defer();
        restore(thread, &Cut::latest(thread));
        thread.leave_lent_stack();
        // The library may have been at work.
        thread.state().latch.reset();
    }
    // Cut short, what it owns is in an unknown state, and stays.
    std::mem::forget(step.deferred.take());
    let done = step.done && !cut;
    thread.settle_mutexes(!done);
    done
}

unsafe extern "C" fn enter(argument: *mut c_void) -> u32 {
    // SAFETY: end_defer() passes this, which lives until this returns or is cut short.
    let step = unsafe { &mut *argument.cast::<Step<'_>>() };
    let thread = step.thread;
    if let Some(deferred) = step.deferred.take() {
        thread.set_phase(Phase::Deferring);
        // The limit may be over already.
        thread.act_on_pending();
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
