//! Whether the C library's heap still works after a request was cut short in it.

use crate::os::clib;
use crate::os::region::Region;
use crate::os::switch::LANDED;
use crate::thread::{Phase, Thread};
use std::ffi::c_void;
use std::hint::black_box;
use std::sync::Mutex;
use std::time::Duration;

/// How long the C library's heap may stay locked after a failure until the process ends. The
/// thread that has it locked may be off the CPU for a while; a longer wait holds up every other thread.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// Blocks that are tried, the first of them always: it is more than a thread's cache of the C library serves, and less
/// than what is mapped for itself.
const SIZES: [usize; 6] = [20_000, 24, 200, 1500, 100_000, 3_000_000];

/// Bytes of the stack that the heap is tried on.
const TRIAL_STACK: usize = 64 * 1024;

/// A stack that no trial runs on: to make one takes the kernel far longer than the trial. Only tried, never waited for.
static SPARE: Mutex<Option<Region>> = Mutex::new(None);

/// A stack to try the heap on, if there is memory.
fn take_stack() -> Option<Region> {
    let spare = SPARE.try_lock().ok().and_then(|mut spare| spare.take());
    spare.or_else(|| Region::new(TRIAL_STACK).ok())
}

/// Keeps a stack for the next trial, unless there is one.
fn keep_stack(stack: Region) {
    if let Ok(mut spare) = SPARE.try_lock() {
        spare.get_or_insert(stack);
    }
}

struct Trial<'a> {
    thread: &'a Thread,
    thoroughly: bool,
    done: bool,
}

/// Whether the C library's heap works: allocates and frees a block, and takes the lock of every arena.
///
/// `thoroughly`: with blocks of all sizes, for allocators that are not the C library's.
///
/// On a stack of its own: threads that the request has started borrow from its stack until they have come to
/// their landings, and waiting for them first could last forever if the heap stays locked.
pub(crate) fn heap_works(thread: &Thread, thoroughly: bool) -> bool {
    let mut trial = Trial {
        thread,
        thoroughly,
        done: false,
    };
    let Some(stack) = take_stack() else {
        // No memory: nothing can be tried.
        return true;
    };
    if !thread.set_limit(PATIENCE) {
        // No timer: a hang would be forever, so nothing is tried.
        return true;
    }
    // SAFETY: a stack that is nobody else's; enter() does not unwind.
    let code = unsafe { thread.on_stack(&stack, enter, (&raw mut trial).cast()) };
    thread.clear_limit();
    keep_stack(stack);
    code != LANDED && trial.done
}

unsafe extern "C" fn enter(argument: *mut c_void) -> u32 {
    // SAFETY: heap_works() passes this, which lives until this returns or is cut short.
    let trial = unsafe { &mut *argument.cast::<Trial<'_>>() };
    trial.thread.set_phase(Phase::Running);
    let sizes = if trial.thoroughly {
        &SIZES[..]
    } else {
        &SIZES[..1]
    };
    for &size in sizes {
        // SAFETY: the block is given back at once.
        unsafe { libc::free(black_box(libc::malloc(black_box(size)))) };
        if trial.thoroughly {
            // A program in Rust may have an allocator of its own.
            drop(black_box(Vec::<u8>::with_capacity(black_box(size))));
        }
    }
    // SAFETY: only counts; takes the lock of every arena for it.
    black_box(unsafe { libc::mallinfo() });
    if trial.thoroughly {
        clib::ask_allocator();
    }
    trial.done = true;
    trial.thread.set_phase(Phase::Outside);
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::MockBackend;
    use crate::thread;

    #[test]
    fn heap_trial_leaves_request_stack_unchanged() {
        const BYTES: usize = 16 * 1024;
        const PATTERN: u8 = 0xa5;
        let app = MockBackend::app("trial of the heap", |_| ());
        let thread = thread::of(app).unwrap();
        let top = thread.stack_region().unwrap().top();
        let base = (top as usize - BYTES) as *mut u8;
        // SAFETY: the top of the request stack, which nothing runs on: the thread has no request.
        let stack = unsafe { std::slice::from_raw_parts_mut(base, BYTES) };
        stack.fill(PATTERN);
        thread.attach_ended(thread.state());
        let works = heap_works(thread, true);
        thread.go_idle();
        assert!(works);
        // SAFETY: as above.
        let stack = unsafe { std::slice::from_raw_parts(base, BYTES) };
        assert!(stack.iter().all(|&byte| byte == PATTERN));
    }
}
