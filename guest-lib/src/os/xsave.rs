//! PKRU as the kernel has saved it in the frame of a signal handler, with the other extended state of the interrupted code
//! (Intel SDM volume 1, 13.4; `struct _fpx_sw_bytes` in the kernel's `asm/sigcontext.h`).

use std::arch::x86_64::__cpuid_count;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

/// PKRU's bit among the components of the state.
const PKRU: u64 = 1 << 9;

/// Where the kernel describes the state, in bytes of the legacy area that the CPU does not use.
const SOFTWARE: usize = 464;

/// What stands there: the state goes on after the legacy area.
const MAGIC: u32 = 0x4650_5853;

/// The header of the state: the components that are not in their initial configuration.
const HEADER: usize = 512;

/// The kernel's description.
#[repr(C)]
struct Software {
    magic: u32,
    extended_size: u32,
    features: u64,
    size: u32,
}

/// Where PKRU lies in the state, in bytes, or 0.
static PLACE: AtomicU32 = AtomicU32::new(0);

/// Asks the CPU where it saves PKRU, which it has.
pub(crate) fn install() {
    #[allow(
        unused_unsafe,
        reason = "safe in newer compilers than the oldest supported"
    )]
    // SAFETY: a CPU with PKRU has the leaf, and gives the place in EBX.
    let place = unsafe { __cpuid_count(0xd, 9) }.ebx;
    PLACE.store(place, Ordering::Relaxed);
}

/// The PKRU of the code that a signal handler has interrupted. `None` if the frame does not say. Async-signal-safe.
///
/// # Safety
///
/// The kernel's context of this thread.
pub(crate) unsafe fn pkru(context: *const libc::ucontext_t) -> Option<u32> {
    let place = PLACE.load(Ordering::Relaxed) as usize;
    // SAFETY: by contract.
    let state = unsafe { (*context).uc_mcontext.fpregs }.cast::<u8>();
    if place == 0 || state.is_null() {
        return None;
    }
    // SAFETY: the legacy area is there, and the kernel's description is plain numbers.
    let software = unsafe { ptr::read_unaligned(state.add(SOFTWARE).cast::<Software>()) };
    let is_whole = software.magic == MAGIC
        && software.features & PKRU != 0
        && place + size_of::<u32>() <= software.size as usize;
    if !is_whole {
        return None;
    }
    // SAFETY: so many bytes are there, as the kernel says.
    let (changed, saved) = unsafe {
        (
            ptr::read_unaligned(state.add(HEADER).cast::<u64>()),
            ptr::read_unaligned(state.add(place).cast::<u32>()),
        )
    };
    Some(if changed & PKRU == 0 { 0 } else { saved })
}
