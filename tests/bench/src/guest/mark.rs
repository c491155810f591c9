//! Marks for the profiler: instructions that do nothing but be seen by its plugin (`profile/plugin.c`).

use std::arch::asm;

macro_rules! mark {
    ($value:literal) => {
        // SAFETY: `nopl` with an address that is not accessed; it changes nothing.
        unsafe {
            asm!(
                ".byte 0x0f, 0x1f, 0x80",
                concat!(".long ", $value),
                options(nostack, preserves_flags)
            );
        }
    };
}

/// The next phase; nothing of it is counted yet.
pub(super) fn next_phase() {
    mark!("0x5a5a0002");
}

/// What follows is counted.
#[inline(always)]
pub(super) fn start() {
    mark!("0x5a5a0001");
}

/// What follows is not counted.
#[inline(always)]
pub(super) fn stop() {
    mark!("0x5a5a0000");
}
