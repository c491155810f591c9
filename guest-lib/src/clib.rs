//! The C library, in which requests are cut short too.
//!
//! A request that is cut short inside of `malloc` or `free` leaves the heap of the C library locked,
//! perhaps half changed: every other thread would wait for it for ever. Two things keep that from
//! happening unseen.
//!
//! - An interrupt, for a missed deadline, waits until the thread has left the C library, unless it
//!   sleeps there in a system call. Nothing is wrong with the heap then, and nothing stays locked.
//! - After an error in the C library (or an abort, which is how it says that its heap is damaged) the
//!   thread tries whether the heap works. If not, the process ends: nothing else can be done about
//!   it, and all domains are as committed.

use crate::region::Region;
use crate::thread::{Phase, Thread};
use std::ffi::{CStr, c_int, c_void};
use std::hint::black_box;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long the C library's heap may stay locked after a failure until the process ends. Who has it
/// locked may be off the CPU for a while; waiting longer than needed costs those who wait for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of the stack that the heap is tried on.
const TRIAL_STACK: usize = 64 * 1024;

/// Time between two looks whether a thread has left the C library.
pub(crate) const RETRY: Duration = Duration::from_micros(500);

/// Looks until a thread is cut short in the C library after all: it may loop there.
pub(crate) const RETRIES: u32 = 400;

/// The C library's code: first address and the one behind its last.
static START: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// Finds the C library, once in a process. In a program that is linked statically there is none, and
/// neither of the two takes place.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the callback has the right signature and keeps nothing.
        unsafe { libc::dl_iterate_phdr(Some(look), std::ptr::null_mut()) };
    });
}

unsafe extern "C" fn look(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _argument: *mut c_void,
) -> c_int {
    // SAFETY: dl_iterate_phdr() passes an object that is alive.
    let object = unsafe { &*object };
    if object.dlpi_name.is_null() {
        return 0;
    }
    // SAFETY: a C string, from the dynamic linker.
    let path = unsafe { CStr::from_ptr(object.dlpi_name) }.to_bytes();
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
    if !name.starts_with(b"libc.so") && !name.starts_with(b"libc-") {
        return 0;
    }
    for place in 0..object.dlpi_phnum {
        // SAFETY: there are that many headers.
        let header = unsafe { &*object.dlpi_phdr.add(place.into()) };
        if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0 {
            let start = object.dlpi_addr + header.p_vaddr;
            START.store(start, Ordering::Relaxed);
            END.store(start + header.p_memsz, Ordering::Relaxed);
        }
    }
    1
}

/// Whether an instruction is the C library's. Async-signal-safe.
pub(crate) fn contains(instruction: u64) -> bool {
    (START.load(Ordering::Relaxed)..END.load(Ordering::Relaxed)).contains(&instruction)
}

/// Whether a thread that a signal has interrupted there is about something in the C library: not if
/// the signal has woken it from a system call, in which nobody sleeps with the heap locked.
/// `result` is RAX. Async-signal-safe.
pub(crate) fn is_busy(instruction: u64, result: u64) -> bool {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    if !contains(instruction) || !contains(instruction - 2) {
        return false;
    }
    // SAFETY: code of the C library, which stays mapped.
    let before = unsafe { *((instruction - 2) as *const [u8; 2]) };
    !(before == SYSCALL && result == -i64::from(libc::EINTR) as u64)
}

/// Whether a request that ended there may have left the C library's heap locked.
pub(crate) fn is_suspect(signal: i32, instruction: u64) -> bool {
    signal == libc::SIGABRT || contains(instruction)
}

struct Trial<'a> {
    thread: &'a Thread,
    done: bool,
}

/// Whether the C library's heap works: takes a block and gives it back, and looks at every arena.
///
/// On a stack of its own: threads that the request has started borrow from its stack until they have come to
/// their landings, and waiting for them first could last for ever if the heap stays locked.
pub(crate) fn heap_works(thread: &Thread) -> bool {
    let mut trial = Trial {
        thread,
        done: false,
    };
    let Ok(stack) = Region::new(TRIAL_STACK) else {
        // No memory: nothing can be tried.
        return true;
    };
    if !thread.set_limit(PATIENCE) {
        // No timer: a hang would be for ever, so nothing is tried.
        return true;
    }
    // SAFETY: a fresh stack; enter() does not unwind.
    let cut = unsafe { thread.on_stack(&stack, enter, (&raw mut trial).cast()) };
    thread.set_phase(Phase::Ending);
    thread.clear_limit();
    !cut && trial.done
}

unsafe extern "C" fn enter(argument: *mut c_void) {
    // SAFETY: heap_works() passes this, which lives until this returns or is cut short.
    let trial = unsafe { &mut *argument.cast::<Trial<'_>>() };
    trial.thread.set_phase(Phase::Running);
    // More than a thread's cache serves, less than what is mapped for itself.
    // SAFETY: the block is given back at once.
    unsafe { libc::free(black_box(libc::malloc(black_box(20_000)))) };
    // SAFETY: only counts; takes the lock of every arena for it.
    black_box(unsafe { libc::mallinfo() });
    trial.done = true;
    trial.thread.set_phase(Phase::Ending);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooked::Hooked;
    use crate::thread;

    #[test]
    fn a_trial_of_the_heap_leaves_the_request_stack_as_it_is() {
        const BYTES: usize = 16 * 1024;
        const PATTERN: u8 = 0xa5;
        let app = Hooked::app("trial of the heap", |_| ());
        let thread = thread::of(app).unwrap();
        let top = thread.stack_region().unwrap().top();
        let base = (top as usize - BYTES) as *mut u8;
        // SAFETY: the top of the request stack, which nothing runs on: the thread has no request.
        let stack = unsafe { std::slice::from_raw_parts_mut(base, BYTES) };
        stack.fill(PATTERN);
        thread.attend();
        let works = heap_works(thread);
        thread.rest();
        assert!(works);
        // SAFETY: as above.
        let stack = unsafe { std::slice::from_raw_parts(base, BYTES) };
        assert!(stack.iter().all(|&byte| byte == PATTERN));
    }
}
