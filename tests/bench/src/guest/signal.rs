//! What an error by a signal costs without VMSRS: the least that recovery from one can take.

use std::arch::asm;
use std::ffi::{c_int, c_void};
use std::mem::zeroed;
use std::ptr;

use anyhow::{Result, ensure};

use super::meter::{Meter, Watch};
use crate::sample::{Sample, What};

/// Bytes of the instruction that faults.
const LENGTH: i64 = 3;

/// Measures a null write, the handler of its signal, which blocks all others as the library's does, and the return to the
/// instruction after it.
pub(super) fn measure(meter: &Meter, rounds: u32) -> Result<()> {
    // SAFETY: all zero is a sigaction; no request runs while it replaces the library's.
    let library = unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = skip as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigfillset(&raw mut action.sa_mask);
        let mut before: libc::sigaction = zeroed();
        let code = libc::sigaction(libc::SIGSEGV, &raw const action, &raw mut before);
        ensure!(code == 0, "cannot install a handler");
        before
    };
    let measured = meter.phase(rounds * 10, |rounds| {
        null_write();
        let watch = Watch::start();
        for _ in 0..rounds {
            null_write();
        }
        Ok(Sample::new(What::Signal, false, rounds).lasted(watch))
    });
    // SAFETY: what was installed before.
    let code = unsafe { libc::sigaction(libc::SIGSEGV, &raw const library, ptr::null_mut()) };
    ensure!(code == 0, "cannot install the library's handler again");
    measured
}

fn null_write() {
    // SAFETY: faults, and the handler goes on after the instruction, which has `LENGTH` bytes.
    unsafe { asm!("mov qword ptr [rax], rcx", in("rax") 0, in("rcx") 0, options(nostack)) };
}

/// Goes on after the instruction.
unsafe extern "C" fn skip(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's context of this thread.
    unsafe {
        (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] += LENGTH
    };
}
