//! Single bytes of pages.

/// Reads a byte from memory.
///
/// # Safety
///
/// `address` must be readable.
pub unsafe fn peek(address: *const u8) -> u8 {
    // SAFETY: guaranteed by the caller.
    unsafe { std::ptr::read_volatile(address) }
}

/// Writes a byte.
///
/// # Safety
///
/// A write to `address` must be sound, or end in a signal that the caller expects.
pub unsafe fn poke(address: *mut u8, value: u8) {
    // SAFETY: guaranteed by the caller.
    unsafe { std::ptr::write_volatile(address, value) }
}
