//! Going to another stack and back, in order or by the way out.
//!
//! The System V ABI (x86-64 psABI, 3.2.1) lets a caller keep the callee-saved registers and the control words of
//! SSE and x87. `vmsrs_switch` saves the control words, and of the registers those that the compiler cannot be told
//! to save. A function that returns in order has to leave them, and the flags, as they were; since the code that returns may
//! be as wrong as any, they are put back. Code that leaves the other stack for good sets the stack pointer to the saved
//! one and goes to `vmsrs_landing`: all else that the abandoned code had in registers is dead by the ABI's rules.

use std::arch::{asm, global_asm};
use std::ffi::c_void;

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("VMSRS guests are Linux on x86-64");

global_asm!(
    ".text",
    ".p2align 4",
    ".globl vmsrs_switch",
    ".hidden vmsrs_switch",
    ".type vmsrs_switch, @function",
    "vmsrs_switch:",
    ".cfi_startproc",
    // The end of the line for unwinders and debuggers.
    ".cfi_undefined rip",
    "push rbp",
    "push rbx",
    "sub rsp, 8",
    "stmxcsr [rsp]",
    "fnstcw [rsp + 4]",
    "mov [rcx], rsp",
    "mov rbx, rsp",
    "mov rsp, rdx",
    "call rsi",
    "pushfq",
    "test dword ptr [rsp], {flags}",
    "jnz 2f",
    "3:",
    "ldmxcsr [rbx]",
    ".globl vmsrs_returning",
    ".hidden vmsrs_returning",
    "vmsrs_returning:",
    // Traps if an exception of x87 is pending.
    "fldcw [rbx + 4]",
    "4:",
    "lea rsp, [rbx + 8]",
    "pop rbx",
    "pop rbp",
    "ret",
    "2:",
    "and dword ptr [rsp], {keep}",
    "popfq",
    "jmp 3b",
    ".globl vmsrs_returning_clean",
    ".hidden vmsrs_returning_clean",
    "vmsrs_returning_clean:",
    "fninit",
    "fldcw [rbx + 4]",
    "jmp 4b",
    ".globl vmsrs_landing",
    ".hidden vmsrs_landing",
    "vmsrs_landing:",
    // The abandoned code may have left flags, MMX mode or a pending x87 exception.
    "pushfq",
    "and dword ptr [rsp], {keep}",
    "popfq",
    "fninit",
    "ldmxcsr [rsp]",
    "fldcw [rsp + 4]",
    "mov eax, {landed}",
    "add rsp, 8",
    "pop rbx",
    "pop rbp",
    "ret",
    ".cfi_endproc",
    ".size vmsrs_switch, . - vmsrs_switch",
    "",
    ".p2align 4",
    ".globl vmsrs_leap",
    ".hidden vmsrs_leap",
    ".type vmsrs_leap, @function",
    "vmsrs_leap:",
    "mov rsp, rdi",
    "jmp vmsrs_landing",
    ".size vmsrs_leap, . - vmsrs_leap",
    landed = const LANDED,
    flags = const FLAGS,
    keep = const !FLAGS,
);

/// Flags that are never set where functions are called or return: trap, direction, nested task, alignment check.
pub(crate) const FLAGS: u32 = 0x100 | 0x400 | 0x4000 | 0x4_0000;

/// The first function on another stack. It returns anything but [`LANDED`].
pub(crate) type Entry = unsafe extern "C" fn(*mut c_void) -> u32;

/// What [`switch`] returns where the function was abandoned.
pub(crate) const LANDED: u32 = 1;

unsafe extern "C" {
    fn vmsrs_switch();
    fn vmsrs_landing();
    fn vmsrs_returning();
    fn vmsrs_returning_clean();
    fn vmsrs_leap(saved: u64) -> !;
}

/// Calls `entry(argument)` on the stack that ends at `top`; returns what it returned, or [`LANDED`]
/// when it was abandoned. `saved` gets the stack pointer for [`leap`] and the landing.
///
/// # Safety
///
/// `top` is 16-byte aligned with enough room below it that nobody else uses; `entry` does not
/// unwind; everything that `entry` leaves half done when it is abandoned is repaired by the caller.
#[expect(clippy::inline_always, reason = "on the way of each request")]
#[inline(always)]
pub(crate) unsafe fn switch(
    top: *mut u8,
    entry: Entry,
    argument: *mut c_void,
    saved: *mut u64,
) -> u32 {
    let code: u32;
    // SAFETY: what it asks for is passed on to the caller. It comes back with RBX, RBP and the control words as they
    // were; abandoned code leaves the others as they are.
    unsafe {
        asm!(
            "call {switch}",
            switch = sym vmsrs_switch,
            in("rdi") argument,
            in("rsi") entry,
            in("rdx") top,
            in("rcx") saved,
            lateout("eax") code,
            lateout("r12") _,
            lateout("r13") _,
            lateout("r14") _,
            lateout("r15") _,
            clobber_abi("C"),
        );
    }
    code
}

/// Where a signal handler must send an abandoned request.
pub(crate) fn landing() -> u64 {
    vmsrs_landing as *const () as u64
}

/// Where a signal handler must send a thread that has met a pending exception of x87 at that instruction, as it came back from
/// an entry that left it. Otherwise `None`.
pub(crate) fn returning(instruction: u64) -> Option<u64> {
    (instruction == vmsrs_returning as *const () as u64)
        .then_some(vmsrs_returning_clean as *const () as u64)
}

/// That of the caller.
#[expect(clippy::inline_always, reason = "in the caller's frame")]
#[inline(always)]
pub(crate) fn stack_pointer() -> u64 {
    let pointer;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) pointer, options(nomem, nostack, preserves_flags)) };
    pointer
}

/// Clears the flags that functions do not expect.
#[inline]
pub(crate) fn clear_flags() {
    // SAFETY: as every function may take them for granted.
    unsafe { asm!("pushfq", "and dword ptr [rsp], {}", "popfq", const !FLAGS) };
}

/// Abandons the running entry at once.
///
/// # Safety
///
/// `saved` was set by the [`switch`] that the calling code runs under.
pub(crate) unsafe fn leap(saved: u64) -> ! {
    // SAFETY: passed on to the caller.
    unsafe { vmsrs_leap(saved) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::region::Region;

    struct Sum {
        value: u64,
        saved: u64,
        leap: bool,
    }

    unsafe extern "C" fn add(argument: *mut c_void) -> u32 {
        // SAFETY: the test passes a Sum.
        let sum = unsafe { &mut *argument.cast::<Sum>() };
        let local = [1u64; 16];
        sum.value += local.iter().sum::<u64>();
        if sum.leap {
            // SAFETY: saved by the switch below us; the only local has no destructor.
            unsafe { leap(sum.saved) }
        }
        7
    }

    #[test]
    fn function_on_another_stack_returns_or_leaps() {
        let region = Region::new(16 * 1024).unwrap();
        for leap in [false, true, true, false] {
            let mut sum = Sum {
                value: 1,
                saved: 0,
                leap,
            };
            let sum = &raw mut sum;
            // SAFETY: the region is ours, add() does not unwind and leaves nothing half done.
            let code = unsafe { switch(region.top(), add, sum.cast(), &raw mut (*sum).saved) };
            assert_eq!(code, if leap { LANDED } else { 7 });
            // SAFETY: the local above.
            assert_eq!(unsafe { (*sum).value }, 17);
        }
    }
}
