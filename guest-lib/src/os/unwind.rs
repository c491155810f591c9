//! Leaving functions of the C library as a thread that is cancelled does: by unwinding their frames, which releases what they
//! hold (`syslog` its lock). Abandoned frames are not unwound otherwise; the server's own never are.
//!
//! The unwinder begins in a frame that looks as if the abandoned code had called it, and is stopped at the first frame that is not
//! the C library's. That frame lies on another stack: what is unwound needs room below itself for what is run there alone.

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

type Trace = unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int;
type Stop =
    unsafe extern "C" fn(c_int, c_int, u64, *mut Exception, *mut c_void, *mut c_void) -> c_int;

global_asm!(
    ".text",
    ".p2align 4",
    ".type vmsrs_unwind_from, @function",
    "vmsrs_unwind_from:",
    ".cfi_startproc",
    // The next frame was interrupted anywhere, and not at a call.
    ".cfi_signal_frame",
    "push rbx",
    "mov rbx, rdi",
    // DWARF expressions: the frame's end is [rbx + 48], and what it has saved lies at rbx + 56 (RIP), + 0 (RBX), + 8 (RBP) ...
    ".cfi_escape 0x0f, 3, 0x73, 48, 0x06",
    ".cfi_escape 0x10, 16, 2, 0x73, 56",
    ".cfi_escape 0x10, 3, 2, 0x73, 0",
    ".cfi_escape 0x10, 6, 2, 0x73, 8",
    ".cfi_escape 0x10, 12, 2, 0x73, 16",
    ".cfi_escape 0x10, 13, 2, 0x73, 24",
    ".cfi_escape 0x10, 14, 2, 0x73, 32",
    ".cfi_escape 0x10, 15, 2, 0x73, 40",
    "mov rax, rsi",
    "mov rdi, rdx",
    "mov rsi, rcx",
    "mov rdx, r8",
    "call rax",
    "pop rbx",
    "ret",
    ".cfi_endproc",
    ".size vmsrs_unwind_from, . - vmsrs_unwind_from",
);

unsafe extern "C" {
    /// Calls the function as if the code with those registers had.
    fn vmsrs_unwind_from(
        registers: *const Registers,
        function: *const c_void,
        first: *mut c_void,
        second: *mut c_void,
        third: *mut c_void,
    ) -> c_int;
    fn _Unwind_ForcedUnwind(exception: *mut Exception, stop: Stop, way: *mut c_void) -> c_int;
    fn _Unwind_Backtrace(trace: Trace, frames: *mut c_void) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
    fn _Unwind_GetIPInfo(context: *mut c_void, is_interrupted: *mut c_int) -> usize;
    fn _Unwind_GetCFA(context: *mut c_void) -> usize;
}

const GO_ON: c_int = 0;
const END: c_int = 5;

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
pub(crate) unsafe fn unwind(registers: &Registers, leave: &Leave<'_>) {
    let mut exception = Exception([0; 4]);
    let mut way = Way {
        leave,
        has_begun: false,
    };
    // SAFETY: by contract. It returns if there is nothing to unwind.
    unsafe {
        vmsrs_unwind_from(
            registers,
            _Unwind_ForcedUnwind as *const c_void,
            (&raw mut exception).cast(),
            stop as *mut c_void,
            (&raw mut way).cast(),
        );
    }
}

/// Longest frame that is believed: one that was overwritten may seem to have any length.
const FRAME_MAX: u64 = 64 * 1024;

/// Most stacks that code is on: signal handlers have their own.
const STACKS: usize = 4;

/// Where the frames of abandoned code lie, on whatever stacks it was: that of a coroutine, or of a signal handler with what that
/// has interrupted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Frames {
    /// First address, and the first one after them; the newest first.
    stacks: [(u64, u64); STACKS],
    count: usize,
}

impl Frames {
    /// Whether that many bytes are in one of them.
    pub(crate) fn hold(&self, address: u64, bytes: usize) -> bool {
        self.stacks[..self.count]
            .iter()
            .any(|&(low, high)| address >= low && address < high && high - address >= bytes as u64)
    }

    /// Adds the frame whose stack pointer that is; `is_interrupted` if it may be on another stack than the one before. False
    /// where no more can be believed.
    fn add(&mut self, pointer: u64, is_interrupted: bool) -> bool {
        if is_interrupted {
            let Some(stack) = self.stacks.get_mut(self.count) else {
                return false;
            };
            *stack = (pointer, pointer);
            self.count += 1;
        } else if let Some((_, high)) = self.stacks[..self.count].last_mut() {
            if !(*high..=*high + FRAME_MAX).contains(&pointer) {
                return false;
            }
            *high = pointer;
        }
        true
    }
}

/// See [`frames`].
struct Search<'a> {
    frames: &'a mut Frames,
    is_end: &'a dyn Fn(u64) -> bool,
}

unsafe extern "C" fn trace(context: *mut c_void, search: *mut c_void) -> c_int {
    let mut is_interrupted = 0;
    // SAFETY: the unwinder's context, and what it was given.
    let (pointer, search) = unsafe {
        _Unwind_GetIPInfo(context, &raw mut is_interrupted);
        (
            _Unwind_GetCFA(context) as u64,
            &mut *search.cast::<Search<'_>>(),
        )
    };
    if (search.is_end)(pointer) || !search.frames.add(pointer, is_interrupted != 0) {
        return END;
    }
    GO_ON
}

/// Finds the frames of abandoned code, but for the last one that has no unwind information, up to where `is_end` holds for the
/// stack pointer. The caller survives an error: frames may have been overwritten.
///
/// # Safety
///
/// Nothing runs in these frames.
pub(crate) unsafe fn frames(
    registers: &Registers,
    is_end: &dyn Fn(u64) -> bool,
    frames: &mut Frames,
) {
    let mut search = Search { frames, is_end };
    // SAFETY: by contract.
    unsafe {
        vmsrs_unwind_from(
            registers,
            _Unwind_Backtrace as *const c_void,
            trace as *mut c_void,
            (&raw mut search).cast(),
            std::ptr::null_mut(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_frames_of_credible_length_are_taken() {
        let mut frames = Frames::default();
        assert!(frames.add(50, false), "that of the search itself");
        assert!(frames.add(1000, true) && frames.add(1100, false));
        assert!(frames.add(500, true) && frames.add(600, false));
        assert!(!frames.add(590, false) && !frames.add(601 + FRAME_MAX, false));
        for (address, bytes, is) in [
            (1000, 100, true),
            (1001, 100, false),
            (999, 8, false),
            (1100, 0, false),
            (500, 8, true),
            (600, 8, false),
            (u64::MAX, 8, false),
        ] {
            assert_eq!(frames.hold(address, bytes), is, "{address}");
        }
        assert!(frames.add(1, true) && frames.add(2, true) && !frames.add(3, true));
    }
}
