//! Running something aside, after a request was cut short: an error in it, or a hang, ends that alone.
//!
//! On a stack of its own: what the request has left on its stack may still be needed, by the work itself or by threads that
//! the request has started and that borrow from it until they have come to their landings.

use crate::error::Error;
use crate::os::region::Region;
use crate::os::switch::LANDED;
use crate::thread::{Phase, Thread};
use std::ffi::c_void;
use std::sync::Mutex;
use std::time::Duration;

/// How long it may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of the stack.
const STACK: usize = 64 * 1024;

/// A stack that nothing runs on: to make one takes the kernel far longer than most work, and there may be no memory. Only tried,
/// never waited for.
static SPARE: Mutex<Option<Region>> = Mutex::new(None);

/// Makes it before it is needed.
///
/// # Errors
///
/// [`Error::System`].
pub(crate) fn install() -> Result<(), Error> {
    keep_stack(Region::new(STACK)?);
    Ok(())
}

/// A stack, if there is memory.
fn take_stack() -> Option<Region> {
    let spare = SPARE.try_lock().ok().and_then(|mut spare| spare.take());
    spare.or_else(|| Region::new(STACK).ok())
}

/// Keeps a stack for the next time, unless there is one.
fn keep_stack(stack: Region) {
    if let Ok(mut spare) = SPARE.try_lock() {
        spare.get_or_insert(stack);
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aside {
    Done,
    /// It was cut short.
    Cut,
    /// There is no memory, or no timer: a hang would be forever.
    NotRun,
}

struct Work<'a> {
    thread: &'a Thread,
    code: &'a mut dyn FnMut(),
    done: bool,
}

/// Runs `work` for a thread that has landed. It does not unwind.
pub(super) fn run(thread: &Thread, work: &mut dyn FnMut()) -> Aside {
    let mut work = Work {
        thread,
        code: work,
        done: false,
    };
    let Some(stack) = take_stack() else {
        return Aside::NotRun;
    };
    if !thread.set_limit(PATIENCE) {
        return Aside::NotRun;
    }
    // SAFETY: a stack that is nobody else's; enter() does not unwind.
    let code = unsafe { thread.on_stack(&stack, enter, (&raw mut work).cast()) };
    thread.clear_limit();
    keep_stack(stack);
    thread.admit_late_signals();
    if code != LANDED && work.done {
        Aside::Done
    } else {
        Aside::Cut
    }
}

unsafe extern "C" fn enter(argument: *mut c_void) -> u32 {
    // SAFETY: run() passes this, which lives until this returns or is cut short.
    let work = unsafe { &mut *argument.cast::<Work<'_>>() };
    work.thread.set_phase(Phase::Running);
    (work.code)();
    work.done = true;
    work.thread.set_phase(Phase::Outside);
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::MockBackend;
    use crate::thread;
    use std::hint::black_box;
    use std::ptr;

    #[test]
    fn request_stack_stays_as_it_is_whatever_happens_aside() {
        const BYTES: usize = 16 * 1024;
        const PATTERN: u8 = 0xa5;
        let app = MockBackend::app("aside", |_| ());
        let thread = thread::of(app).unwrap();
        let top = thread.stack_region().unwrap().top();
        let base = (top as usize - BYTES) as *mut u8;
        // SAFETY: the top of the request stack, which nothing runs on: the thread has no request.
        let stack = unsafe { std::slice::from_raw_parts_mut(base, BYTES) };
        stack.fill(PATTERN);
        thread.attach_ended(thread.state());
        let mut ran = false;
        assert_eq!(run(thread, &mut || ran = true), Aside::Done);
        let cut = run(thread, &mut || {
            // SAFETY: it is not; that is the test.
            unsafe { black_box(ptr::without_provenance_mut::<u32>(16)).write_volatile(1) };
        });
        assert_eq!(cut, Aside::Cut);
        thread.go_idle();
        assert!(ran);
        // SAFETY: as above.
        let stack = unsafe { std::slice::from_raw_parts(base, BYTES) };
        assert!(stack.iter().all(|&byte| byte == PATTERN));
    }
}
