//! Leaving the functions of the C library that a request was cut short in.

use super::aside;
use crate::os::{clib, unwind};
use crate::thread::Thread;
use vmsrs_protocol::incident::{
    REG_R12, REG_R13, REG_R14, REG_R15, REG_RBP, REG_RBX, REG_RIP, REG_RSP,
};
use vmsrs_protocol::ioctl::IoctlFail;

/// Bytes of the request stack that unwinding may take.
const ROOM: u64 = 64 * 1024;

/// The registers at the error of that record, if it was in one. Not in `abort`, which holds nothing when it has raised its signal.
pub(super) fn in_c_library(record: &IoctlFail) -> Option<unwind::Registers> {
    let is_told = ![0, libc::SIGABRT].contains(&record.signal);
    if !is_told || !clib::is_own(record.registers[REG_RIP]) {
        return None;
    }
    let register = |number: usize| record.registers[number];
    Some(unwind::Registers {
        rbx: register(REG_RBX),
        rbp: register(REG_RBP),
        r12: register(REG_R12),
        r13: register(REG_R13),
        r14: register(REG_R14),
        r15: register(REG_R15),
        rsp: register(REG_RSP),
        rip: register(REG_RIP),
    })
}

/// Unwinds them. Not where one of them has called the server back.
pub(super) fn leave_c_library(thread: &Thread, registers: &unwind::Registers) {
    let has_room = thread.stack_region().is_some_and(|stack| {
        let low = registers.rsp.saturating_sub(ROOM);
        stack.holds(low, ROOM as usize)
    });
    if !has_room {
        return;
    }
    // SAFETY: nothing runs on the request stack; its frames were abandoned by a signal. The work runs aside, where an error and
    // this way out lead to the same landing.
    aside::run(thread, &mut || unsafe {
        unwind::unwind(registers, &|| thread.go_to_landing())
    });
}
