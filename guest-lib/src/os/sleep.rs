//! What a thread sleeps in that a signal has found in the C library: a wait for another thread, in most cases.
//!
//! Who is abandoned in such a wait may be counted by what it waits for. Conditions and semaphores ask for a routine that takes
//! the waiter off (`os/cancellation.rs`); a mutex does not count who waits. A `pthread_rwlock` does, and takes a waiter off only when its
//! time is up. So that is what it is told.

use super::cancellation;
use super::clib::{self, SYSCALL};
use std::ffi::c_int;

/// Bits of an operation that say how it is meant.
const FLAGS: u64 = (libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME) as u64;

/// Not in all versions of the libc crate.
const LOCK_PI2: c_int = 13;

/// Bytes above the stack pointer in which the functions of a wait have their frames.
const FRAMES: u64 = 1024;

/// What the registers of a thread say about it that a signal has interrupted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sleep {
    /// RIP.
    instruction: u64,
    /// RAX: the result of a system call that is over, or the number of the next one.
    result: u64,
    /// RSI: of a futex.
    operation: u64,
    /// RSP.
    stack: u64,
}

impl Sleep {
    /// From the registers in a signal handler's context. Async-signal-safe.
    pub(crate) fn of(registers: &[libc::greg_t; 23]) -> Self {
        let register = |number: c_int| registers[number as usize] as u64;
        Self {
            instruction: register(libc::REG_RIP),
            result: register(libc::REG_RAX),
            operation: register(libc::REG_RSI),
            stack: register(libc::REG_RSP),
        }
    }

    /// Whether the signal has woken the thread from a system call.
    fn is_over(&self) -> bool {
        self.result == -i64::from(libc::EINTR) as u64 && has_syscall(self.instruction - 2)
    }

    /// Whether it is about to go on with the wait for a mutex with priority inheritance, which no signal ends.
    fn goes_on(&self) -> bool {
        let is_lock = [libc::FUTEX_LOCK_PI, LOCK_PI2]
            .iter()
            .any(|&operation| self.operation & !FLAGS == operation as u64);
        is_lock && self.result == libc::SYS_futex as u64 && has_syscall(self.instruction)
    }

    /// Whether the thread was woken in a wait whose function must be told that its time is up. Async-signal-safe.
    pub(crate) fn ends_by_timeout(&self) -> bool {
        if !clib::contains(self.instruction)
            || !self.is_over()
            || self.operation & !FLAGS != libc::FUTEX_WAIT_BITSET as u64
        {
            return false;
        }
        let routine = cancellation::newest_cleanup();
        !(self.stack..self.stack + FRAMES).contains(&routine)
    }

    /// Whether the thread is about something in the code of the C library or of the allocator: not if
    /// it sleeps in a system call, which nobody does with the C library's heap locked. Another
    /// allocator may wait for one of its locks with another one held: `callers` are the words at the top of the stack, and
    /// its return addresses among them. Async-signal-safe.
    pub(crate) fn is_busy(&self, callers: &[u64]) -> bool {
        if !clib::contains(self.instruction) || !clib::contains(self.instruction - 2) {
            return false;
        }
        let sleeps = self.is_over() || self.goes_on();
        !sleeps || callers.iter().any(|&word| clib::is_in_allocator(word))
    }

    /// See [`clib::can_step`]. Async-signal-safe.
    pub(crate) fn can_step(&self) -> bool {
        clib::can_step(self.instruction, self.result)
    }
}

fn has_syscall(instruction: u64) -> bool {
    if !clib::contains(instruction) {
        return false;
    }
    // SAFETY: code of the C library or of the allocator, which stays mapped.
    unsafe { (instruction as *const [u8; 2]).read() == SYSCALL }
}
