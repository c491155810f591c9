//! Leaving functions of the C library as a thread that is cancelled does: by unwinding their frames, which releases what they
//! hold (`syslog` its lock). Abandoned frames are not unwound otherwise; the server's own never are.
//!
//! The unwinder begins in a frame that looks as if the abandoned code had called it, and is stopped at the first frame that is not
//! the C library's.

use super::clib;
use std::arch::global_asm;
use std::convert::Infallible;
use std::ffi::{c_int, c_void};

/// The registers that frames are unwound from, as the abandoned code had them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registers {
    pub(crate) rbx: u64,
    pub(crate) rbp: u64,
    pub(crate) r12: u64,
    pub(crate) r13: u64,
    pub(crate) r14: u64,
    pub(crate) r15: u64,
    pub(crate) rsp: u64,
    pub(crate) rip: u64,
}

/// `struct _Unwind_Exception`.
#[repr(C, align(16))]
struct Exception([u64; 4]);

type Stop =
    unsafe extern "C" fn(c_int, c_int, u64, *mut Exception, *mut c_void, *mut c_void) -> c_int;

global_asm!(
    ".text",
    ".p2align 4",
    ".type vmsrs_unwind, @function",
    "vmsrs_unwind:",
    ".cfi_startproc",
    // The next frame was interrupted anywhere, and not at a call.
    ".cfi_signal_frame",
    "mov rbx, [rdi]",
    "mov rbp, [rdi + 8]",
    "mov r12, [rdi + 16]",
    "mov r13, [rdi + 24]",
    "mov r14, [rdi + 32]",
    "mov r15, [rdi + 40]",
    "mov rsp, [rdi + 48]",
    "push qword ptr [rdi + 56]",
    "push rbp",
    "mov rbp, rsp",
    ".cfi_def_cfa rbp, 16",
    ".cfi_offset rbp, -16",
    "and rsp, -16",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "mov rdx, rcx",
    "call qword ptr [rip + _Unwind_ForcedUnwind@GOTPCREL]",
    // There is nothing to unwind.
    "ud2",
    ".cfi_endproc",
    ".size vmsrs_unwind, . - vmsrs_unwind",
);

unsafe extern "C" {
    fn vmsrs_unwind(
        registers: *const Registers,
        exception: *mut Exception,
        stop: Stop,
        way: *mut c_void,
    ) -> !;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

/// How far it has come.
struct Way<'a> {
    leave: &'a Leave<'a>,
    /// In the C library.
    has_begun: bool,
}

/// Goes to a landing. It is called somewhere on the stack that is unwound.
pub(crate) type Leave<'a> = dyn Fn() -> Infallible + 'a;

/// Called for each frame, before it is unwound.
unsafe extern "C" fn stop(
    _version: c_int,
    _actions: c_int,
    _class: u64,
    _exception: *mut Exception,
    context: *mut c_void,
    way: *mut c_void,
) -> c_int {
    const GO_ON: c_int = 0;
    // SAFETY: the unwinder's context, and what it was given.
    let (instruction, way) =
        unsafe { (_Unwind_GetIP(context) as u64, &mut *way.cast::<Way<'_>>()) };
    if clib::is_own(instruction) {
        way.has_begun = true;
    } else if way.has_begun {
        (way.leave)();
    }
    GO_ON
}

/// Unwinds frames of the C library from there on, and leaves. An error on the way has to lead to the same landing.
///
/// # Safety
///
/// The registers of code that is abandoned, on a stack whose frames are as it left them, with room below. The caller runs on
/// another stack.
pub(crate) unsafe fn unwind(registers: &Registers, leave: &Leave<'_>) -> ! {
    let mut exception = Exception([0; 4]);
    let mut way = Way {
        leave,
        has_begun: false,
    };
    // SAFETY: by contract.
    unsafe { vmsrs_unwind(registers, &raw mut exception, stop, (&raw mut way).cast()) }
}
