//! The C library.

use std::ffi::{c_char, c_uchar};

/// Most bytes that a byte of a text becomes.
const LONGEST: usize = 6;

unsafe extern "C" {
    fn morse_encode(text: *const c_uchar, length: usize, to: *mut c_char) -> usize;
}

/// How many bytes the codes of a text have at most.
#[must_use]
pub fn room_for(text: &[u8]) -> usize {
    text.len() * LONGEST
}

/// Writes the codes of a text to `codes`, and returns how many bytes these are.
///
/// # Panics
///
/// If `codes` is shorter than [`room_for`] says.
pub fn encode(text: &[u8], codes: &mut [u8]) -> usize {
    assert!(codes.len() >= room_for(text), "the codes need more room");
    // SAFETY: it reads the text and writes that many bytes. That it fails for some texts is what requests are for.
    unsafe { morse_encode(text.as_ptr(), text.len(), codes.as_mut_ptr().cast()) }
}
