//! What a thread sleeps in that a signal has found in the C library.
//!
//! Who is abandoned there leaves behind what the function has begun. Waits for conditions and semaphores, and `system`, have asked for a
//! routine that ends them (`os/cancellation.rs`). Two others end when the system call that they sleep in fails, and are told
//! that it has:
//!
//! - A `pthread_rwlock` counts who waits for it, and takes a waiter off when its time is up.
//! - `syslog` sends, and `gethostbyname` and its kin ask for names, with a lock of their own, for which all other threads would wait.
//!
//! Rust's library reads and writes the standard streams with locks of its own, which it gives back when the system call fails.
//!
//! `lio_listio` and `getaddrinfo_a` wait for operations of the C library's own threads, which follow records of the wait on the
//! waiting thread's stack, and which no function takes back: neither when it is told that the time is up.

use super::cancellation;
use super::clib::{self, SYSCALL};
use super::weak::address_of;
use super::{file, modules, streams};
use std::ffi::c_int;

/// Bits of an operation that say how it is meant.
const FLAGS: u64 = (libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME) as u64;

/// Not in all versions of the libc crate.
const LOCK_PI2: c_int = 13;

/// Most that a function of the C library polls.
const POLLED_MAX: u64 = 8;

/// Bytes above the stack pointer in which the functions of a wait have their frames.
const FRAMES: u64 = 1024;

/// What the registers of a thread say about it that a signal has interrupted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sleep {
    /// RIP.
    instruction: u64,
    /// RAX: the result of a system call that is over, or the number of the next one.
    result: u64,
    /// RDI and RSI: the arguments of that call.
    first: u64,
    second: u64,
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
            first: register(libc::REG_RDI),
            second: register(libc::REG_RSI),
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
            .any(|&operation| self.second & !FLAGS == operation as u64);
        is_lock && self.result == libc::SYS_futex as u64 && has_syscall(self.instruction)
    }

    /// The error that the function gets from its system call so that it ends, if the thread was woken in one that must not be
    /// abandoned. `callers`: see [`Sleep::is_busy`]. Async-signal-safe.
    pub(crate) fn way_out(&self, callers: &[u64]) -> Option<c_int> {
        if !clib::contains(self.instruction) || !self.is_over() {
            return None;
        }
        let error = if self.waits_for_futex() {
            libc::ETIMEDOUT
        } else if self.waits_for_socket() && !callers.is_empty() && !streams::is_at_work(callers) {
            // A stream would throw away what others have written to it, too.
            libc::EIO
        } else {
            return None;
        };
        let routine = cancellation::newest_cleanup();
        let has_routine = (self.stack..self.stack + FRAMES).contains(&routine);
        (!has_routine).then_some(error)
    }

    /// Whether the thread was woken in reading or writing a standard descriptor: not for a stream of the C library's, which is
    /// unlocked anyway, and would throw away what others have written to it. Async-signal-safe.
    pub(crate) fn uses_standard_descriptor(&self, callers: &[u64]) -> bool {
        self.first <= libc::STDERR_FILENO as u64
            && clib::contains(self.instruction)
            && self.is_over()
            && !callers.is_empty()
            && !streams::is_at_work(callers)
            && is_in_transfer(self.instruction, callers)
    }

    fn waits_for_futex(&self) -> bool {
        self.second & !FLAGS == libc::FUTEX_WAIT_BITSET as u64
    }

    /// The word that is 0 when the operations have ended that the thread waits for, and nobody follows records on its stack any
    /// more; if it was woken in such a wait. Async-signal-safe.
    pub(crate) fn operations(&self, callers: &[u64]) -> Option<u64> {
        let is_wait = clib::contains(self.instruction) && self.is_over() && self.waits_for_futex();
        (is_wait && callers.iter().any(|&word| is_in_wait(word))).then_some(self.first)
    }

    /// Its number, or that in the first element that `poll` was given. What is taken for one by mistake has an error earlier than it
    /// would have had.
    fn waits_for_socket(&self) -> bool {
        let is_socket = |fd: u64| c_int::try_from(fd).is_ok_and(file::is_socket);
        let mut polled = [0_u32; 1];
        is_socket(self.first)
            || ((1..=POLLED_MAX).contains(&self.second)
                && modules::read(self.first, &mut polled).is_some()
                && is_socket(polled[0].into()))
    }

    /// Has the thread go on with the wait for a futex that the signal has woken it from. Async-signal-safe.
    pub(crate) fn go_on(registers: &mut [libc::greg_t; 23]) {
        registers[libc::REG_RIP as usize] -= SYSCALL.len() as i64;
        registers[libc::REG_RAX as usize] = libc::SYS_futex;
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
        let holds = |&word| clib::is_in_allocator(word) || is_in_setxid(word);
        !sleeps || callers.iter().any(holds)
    }

    /// Whether the thread is about to make a system call, in which it may sleep. Async-signal-safe.
    pub(crate) fn may_begin(&self) -> bool {
        has_syscall(self.instruction)
    }

    /// See [`clib::can_step`]. Async-signal-safe.
    pub(crate) fn can_step(&self) -> bool {
        clib::can_step(self.instruction, self.result)
    }
}

/// Whether a return address leads to a function that changes the user or the group of all threads: it waits for each of them
/// with a lock that new threads need. Async-signal-safe.
fn is_in_setxid(address: u64) -> bool {
    /// Farthest that it lies from the beginning of such a function.
    const LENGTH: u64 = 256;
    let functions = [
        address_of!("setuid"),
        address_of!("setgid"),
        address_of!("seteuid"),
        address_of!("setegid"),
        address_of!("setreuid"),
        address_of!("setregid"),
        address_of!("setresuid"),
        address_of!("setresgid"),
        address_of!("setgroups"),
    ];
    functions.iter().any(|&function| {
        function != 0 && (function as u64..function as u64 + LENGTH).contains(&address)
    })
}

/// Whether an instruction, or one of the return addresses next to it, is in a function that reads or writes a descriptor.
/// Async-signal-safe.
fn is_in_transfer(instruction: u64, callers: &[u64]) -> bool {
    /// Farthest that it lies from the beginning of such a function.
    const LENGTH: u64 = 160;
    /// Words above the stack pointer. The C library may make the system call in a function of its own.
    const NEAR: usize = 16;
    let functions = [
        address_of!("read"),
        address_of!("write"),
        address_of!("readv"),
        address_of!("writev"),
    ];
    let is_in = |address: u64| {
        functions.iter().any(|&function| {
            function != 0 && (function as u64..function as u64 + LENGTH).contains(&address)
        })
    };
    is_in(instruction) || callers.iter().take(NEAR).any(|&word| is_in(word))
}

/// Whether a return address leads to a function that waits for operations. Async-signal-safe.
fn is_in_wait(address: u64) -> bool {
    /// Longest of them.
    const LENGTH: u64 = 2048;
    /// The same for the part of `lio_listio` that may lie before it.
    const PART: u64 = 1280;
    let names = address_of!("getaddrinfo_a") as u64;
    let list = address_of!("lio_listio") as u64;
    (names != 0 && (names..names + LENGTH).contains(&address))
        || (list != 0 && (list.saturating_sub(PART)..list + LENGTH).contains(&address))
}

fn has_syscall(instruction: u64) -> bool {
    if !clib::contains(instruction) {
        return false;
    }
    // SAFETY: code of the C library or of the allocator, which stays mapped.
    unsafe { (instruction as *const [u8; 2]).read() == SYSCALL }
}
