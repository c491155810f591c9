//! The compiler's sanitizers (`-fsanitize=address` and others), if the program has one.

use std::arch::asm;
use std::ffi::c_void;

/// The address of a function that the program may have, 0 if it has none.
macro_rules! address_of {
    ($name:literal) => {{
        let address: usize;
        // SAFETY: reads the address.
        unsafe {
            asm!(
                concat!(".weak ", $name),
                concat!("mov {}, qword ptr [rip + ", $name, "@GOTPCREL]"),
                out(reg) address,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
        address
    }};
}

/// Whether there is one that knows most addresses of the process by what Linux maps there: the thread or the memory
/// sanitizer.
pub(crate) fn has_fixed_addresses() -> bool {
    address_of!("__tsan_init") != 0 || address_of!("__msan_init") != 0
}

type OfMemory = unsafe extern "C" fn(*const c_void, usize);

/// Calls a sanitizer's function for memory, if there is one.
fn tell(function: usize, start: *const u8, size: usize) {
    if function != 0 {
        // SAFETY: a function of this type; it notes the addresses, or forgets what it knows of them.
        unsafe { std::mem::transmute::<usize, OfMemory>(function)(start.cast(), size) }
    }
}

/// What code on a stack has told the address sanitizer holds no more: it was abandoned.
pub(crate) fn forget_stack(low: *const u8, size: usize) {
    tell(address_of!("__asan_unpoison_memory_region"), low, size);
}

/// From here on the leak sanitizer looks for pointers in this memory.
pub(super) fn add_root(low: *const u8, size: usize) {
    tell(address_of!("__lsan_register_root_region"), low, size);
}

/// Takes [`add_root`] back.
pub(super) fn remove_root(low: *const u8, size: usize) {
    tell(address_of!("__lsan_unregister_root_region"), low, size);
}
