//! Leaving the functions of the C library that a request was cut short in.

use super::aside;
use crate::os::{clib, unwind};
use crate::thread::Thread;
use vmsrs_protocol::incident::{
    REG_R12, REG_R13, REG_R14, REG_R15, REG_RBP, REG_RBX, REG_RIP, REG_RSP,
};
use vmsrs_protocol::ioctl::IoctlFail;

/// Bytes of a stack that unwinding may take: what the C library does in its frames, and what finds the next of them.
const ROOM: usize = 16 * 1024;

/// The registers at the error of that record.
#[cold]
pub(super) fn registers(record: &IoctlFail) -> unwind::Registers {
    let register = |number: usize| record.registers[number];
    unwind::Registers {
        rbx: register(REG_RBX),
        rbp: register(REG_RBP),
        r12: register(REG_R12),
        r13: register(REG_R13),
        r14: register(REG_R14),
        r15: register(REG_R15),
        rsp: register(REG_RSP),
        rip: register(REG_RIP),
    }
}

/// Whether that was in the C library. Not in `abort`, which holds nothing when it has raised its signal.
pub(super) fn is_in_c_library(record: &IoctlFail) -> bool {
    ![0, libc::SIGABRT].contains(&record.signal) && clib::is_own(record.registers[REG_RIP])
}

/// Unwinds its functions. Not where one of them has called the server back.
#[cold]
pub(super) fn leave_c_library(thread: &Thread, registers: &unwind::Registers) {
    if !thread.has_room_at(registers.rsp, ROOM) {
        return;
    }
    // SAFETY: nothing runs on the stack; its frames were abandoned by a signal. The work runs aside, where an error and
    // this way out lead to the same landing.
    aside::run(thread, &mut || unsafe {
        unwind::unwind(registers, &|| thread.go_to_landing());
    });
}
