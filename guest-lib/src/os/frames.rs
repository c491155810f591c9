//! Frames that the kernel makes for signal handlers: `struct rt_sigframe`, whose lowest word is the address that the handler
//! returns to, the C library's call of `rt_sigreturn`.

use super::signals::Signals;
use std::ffi::c_int;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

/// `struct sigaction` of the kernel.
#[repr(C)]
#[derive(Default)]
struct Action {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

/// What handlers return to.
static RESTORER: AtomicU64 = AtomicU64::new(0);

/// Learns what handlers return to, from a signal that has a handler.
pub(crate) fn install(signal: c_int) {
    let mut action = Action::default();
    // SAFETY: only reads the disposition.
    let read = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            ptr::null::<Action>(),
            &raw mut action,
            size_of::<u64>(),
        )
    };
    if read == 0 {
        RESTORER.store(action.restorer, Ordering::Relaxed);
    }
}

/// A word before the context, which ends with the kernel's set of signals, one word.
pub(crate) const CONTEXT: u64 = 8;
const CONTEXT_END: u64 = CONTEXT + 304;

/// Farthest that the saved registers of the FPU lie above their frame.
const FPU_MAX: u64 = 64 * 1024;

/// The frame of a handler that has not returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SignalFrame(u64);

impl SignalFrame {
    /// The innermost handler that runs on a stack and blocks signals of those that are `blocked`: its own, at least. `stack` are
    /// its addresses from the stack pointer on. Async-signal-safe.
    pub(crate) fn find(stack: Range<u64>, blocked: Signals) -> Option<Self> {
        let restorer = RESTORER.load(Ordering::Relaxed);
        let first = stack.start.next_multiple_of(8);
        let last = stack.end.checked_sub(CONTEXT_END)?;
        let mut addresses = (first..last.max(first)).step_by(8);
        addresses.find_map(|address| {
            // SAFETY: a word of the stack, which is in use from its pointer on.
            let word = unsafe { (address as *const u64).read() };
            // SAFETY: the frame lies in the stack as a whole, if it is one.
            (word == restorer && restorer != 0).then(|| unsafe { Self::read(address, blocked) })?
        })
    }

    /// # Safety
    ///
    /// That many bytes can be read there.
    unsafe fn read(address: u64, blocked: Signals) -> Option<Self> {
        let context = (address + CONTEXT) as *const libc::ucontext_t;
        // SAFETY: by contract; a context is plain numbers.
        let (registers, fpu, link, before) = unsafe {
            (
                (*context).uc_mcontext.gregs,
                (*context).uc_mcontext.fpregs as u64,
                (*context).uc_link,
                Signals::read(&(*context).uc_sigmask),
            )
        };
        // What was left of another frame, perhaps: it has to be right in every respect.
        let is_whole = link.is_null()
            && registers[libc::REG_CSGSFS as usize] & 0xffff == 0x33
            && (address..address + FPU_MAX).contains(&fpu)
            && before.without(blocked).are_none()
            && before != blocked;
        is_whole.then_some(Self(address))
    }

    /// Where a thread goes on that leaves the handler: instruction and stack pointer.
    pub(crate) fn end(self) -> (u64, u64) {
        (RESTORER.load(Ordering::Relaxed), self.0 + CONTEXT)
    }
}
