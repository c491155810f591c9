//! Making a thread what it was, after its request or a defer was cut short.

use super::aside::{self, Aside};
use super::end::abort_process;
use super::unwind::{is_in_c_library, leave_c_library, registers};
use super::{panic_hook, trial};
use crate::os::unwind::Registers;
use crate::os::{clib, loader, signals, streams};
use crate::thread::{LEFT, Thread};
use vmsrs_protocol::incident::{REG_RIP, REG_RSP};

/// Where something was cut short.
pub(super) struct Cut {
    /// The signal that told the error, or 0.
    signal: i32,
    instruction: u64,
    is_in_c_library: bool,
    /// It was on another stack than the request's.
    is_elsewhere: bool,
    /// Of either of these.
    registers: Option<Registers>,
}

impl Cut {
    /// By the thread's latest error.
    pub(super) fn latest(thread: &Thread) -> Self {
        thread.with_record(|record| {
            let is_in_c_library = is_in_c_library(record);
            let is_elsewhere =
                record.signal != 0 && thread.was_elsewhere(record.registers[REG_RSP]);
            Self {
                signal: record.signal,
                instruction: record.registers[REG_RIP],
                is_in_c_library,
                is_elsewhere,
                registers: (is_in_c_library || is_elsewhere).then(|| registers(record)),
            }
        })
    }
}

/// Makes the thread what it was when the request began, or a defer, which was cut short there.
pub(super) fn restore(thread: &Thread, cut: &Cut) {
    let (signal, instruction) = (cut.signal, cut.instruction);
    // Where a signal has sent the thread here, its handler has done that.
    if signal == 0 {
        thread.restore_signals();
    }
    let run = |work: &mut dyn FnMut()| aside::run(thread, work) == Aside::Done;
    let spare = thread.keep_signal_stack();
    if let Some(registers) = cut.registers.as_ref().filter(|_| cut.is_elsewhere) {
        thread.find_frames(registers, run);
    }
    thread.restore(run);
    if let Some(registers) = cut.registers.as_ref().filter(|_| cut.is_in_c_library) {
        leave_c_library(thread, registers);
    }
    loader::unlock(thread.number());
    if signal != 0 && clib::is_in_linker(instruction) {
        aside::run(thread, &mut loader::end_lookup);
    }
    // An allocator of the program's own cannot be seen. An interrupt may have struck in it, and so may the signal of a handler
    // that failed, or that has left the request for good.
    let is_interrupted = (signal != 0 && signal == signals::interrupt())
        || thread.take_in_handler()
        || thread.message() == LEFT;
    let was_in_c_library = is_interrupted || clib::is_suspect(signal, instruction);
    if was_in_c_library {
        restore_c_library(thread, is_interrupted);
    } else if streams::has_standard() {
        unlock_streams(thread);
    }
    if is_interrupted || cut.is_in_c_library {
        aside::run(thread, &mut || {
            streams::drop_dead(|address, bytes| thread.is_dead(address, bytes));
        });
    }
    if cut.is_elsewhere || spare.is_some() {
        thread.forget_frames(spare.as_ref());
    }
    let was_in_hook = thread.take_hook();
    if was_in_hook || std::thread::panicking() {
        panic_hook::put_right(thread, was_in_hook);
    }
}

/// Unlocks the streams of the C library that the thread has left locked.
fn unlock_streams(thread: &Thread) {
    /// Other threads may change the list meanwhile.
    const TRIES: usize = 3;
    let mut tries = 0..TRIES;
    let _ = tries.any(|_| aside::run(thread, &mut streams::unlock_all) != Aside::Cut);
}

/// Unlocks its streams, and ends the process if the thread has left its heap locked or damaged. Both at once where nothing is
/// damaged: to limit the time of each takes two system calls.
fn restore_c_library(thread: &Thread, is_interrupted: bool) {
    let thoroughly = is_interrupted || clib::has_other_allocator();
    let mut unlocked = false;
    let mut first = || {
        streams::unlock_all();
        unlocked = true;
    };
    let mut works = trial::heap_works(thread, thoroughly, &mut first);
    if !unlocked {
        unlock_streams(thread);
        works = trial::heap_works(thread, thoroughly, &mut || ());
    }
    if !works {
        abort_process(b"vmsrs: the C library's heap is damaged or stays locked");
    }
}
