//! The C++ runtime's state of exceptions of a thread: those that are being handled, and how many are on their way. Code that
//! was cut short in a handler, or while its frames were unwound, leaves them there.
//!
//! Those being handled are a list, the newest first, and each says which frame has caught it. So those of the code that was
//! cut short are told from the server's below them, whenever the server has caught these. Two cases are not told apart:
//!
//! - An exception of the server's that the request has thrown again and caught counts as the request's, if no look has seen it.
//! - Nothing lists the exceptions that are on their way, and one counter has the server's and the request's. It is put back to
//!   what was seen, or left if it is lower: the server's may have arrived since. It is too low if the server runs a failing
//!   request in a destructor while its own exception is on its way, and no look has seen that.

use super::modules;
use std::arch::asm;
use std::ffi::c_void;
use std::ptr;

/// See the module's description. The layout is the Itanium ABI's (`__cxa_eh_globals`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Exceptions {
    caught: *mut c_void,
    uncaught: u32,
}

/// Bytes from the beginning of an exception (`__cxa_exception`, `__cxa_dependent_exception`) to the part that all languages have
/// (`_Unwind_Exception`), which begins with its class; and that class of exceptions and of dependent ones.
const LAYOUTS: [(u64, [u64; 2]); 2] = [
    // libstdc++
    (
        80,
        [
            u64::from_be_bytes(*b"GNUCC++\0"),
            u64::from_be_bytes(*b"GNUCC++\x01"),
        ],
    ),
    // libc++abi, which has two words more at the beginning.
    (
        96,
        [
            u64::from_be_bytes(*b"CLNGC++\0"),
            u64::from_be_bytes(*b"CLNGC++\x01"),
        ],
    ),
];

/// From that part: back to the next exception, and on to the stack pointer of the frame that has caught this one (`private_2`).
const NEXT: u64 = 48;
const FRAME: u64 = 24;

/// More that one request handles at a time are a circle.
const CAUGHT_MAX: usize = 1000;

/// The exception below one on the list, and the stack pointer of the frame that has caught it. `None` if it is not readable, or
/// another language's: then nothing says how the list goes on.
fn read(exception: u64) -> Option<(u64, u64)> {
    let word = |address: u64| {
        let mut word = [0_u64];
        modules::read(address, &mut word)?;
        Some(word[0])
    };
    for (common, classes) in LAYOUTS {
        let common = exception.checked_add(common)?;
        if classes.contains(&word(common)?) {
            return Some((word(common - NEXT)?, word(common.checked_add(FRAME)?)?));
        }
    }
    None
}

/// What is left of the list that begins with `exception` without those on top that abandoned frames have caught; at the latest
/// with the one that was `seen` on it. `None` if the list cannot be read.
fn without_abandoned(
    mut exception: u64,
    seen: u64,
    is_in_use: impl Fn(u64) -> bool,
) -> Option<u64> {
    for _ in 0..CAUGHT_MAX {
        if exception == 0 || exception == seen {
            return Some(exception);
        }
        let (next, frame) = read(exception)?;
        if is_in_use(frame) {
            return Some(exception);
        }
        exception = next;
    }
    None
}

impl Exceptions {
    pub(crate) const NONE: Self = Self {
        caught: ptr::null_mut(),
        uncaught: 0,
    };

    /// Where a thread has its own.
    fn place() -> Option<*mut Self> {
        let function: *const c_void;
        // SAFETY: reads an address, 0 where the program was started without a C++ runtime.
        unsafe {
            asm!(
                ".weak __cxa_get_globals",
                "mov {}, [rip + __cxa_get_globals@GOTPCREL]",
                out(reg) function,
                options(nostack, preserves_flags, readonly)
            );
        }
        if function.is_null() {
            return None;
        }
        // SAFETY: the ABI's function of this name.
        let function: unsafe extern "C" fn() -> *mut Self =
            unsafe { std::mem::transmute(function) };
        // SAFETY: it has no conditions.
        Some(unsafe { function() })
    }

    /// Those of the calling thread.
    pub(crate) fn current() -> Self {
        // SAFETY: the calling thread's own.
        Self::place().map_or(Self::NONE, |place| unsafe { place.read() })
    }

    /// Takes those off that the code has left which was cut short, on a thread that was seen with `self`. `is_in_use` says
    /// whether the frame with that stack pointer is not abandoned.
    pub(crate) fn restore(self, is_in_use: impl Fn(u64) -> bool) {
        let Some(place) = Self::place() else {
            return;
        };
        // SAFETY: the calling thread's own.
        let now = unsafe { place.read() };
        if now == self {
            return;
        }
        let caught = without_abandoned(now.caught as u64, self.caught as u64, is_in_use)
            .map_or(self.caught, |caught| caught as *mut c_void);
        let uncaught = now.uncaught.min(self.uncaught);
        // SAFETY: as above.
        unsafe { place.write(Self { caught, uncaught }) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Frames from here on are in use.
    const IN_USE: u64 = 0x1000;

    type Words = [Cell<u64>; 16];

    fn address(words: &Words) -> u64 {
        words.as_ptr() as u64
    }

    /// An exception with the common part at that word.
    fn exception(common: usize, class: [u8; 8], next: u64, frame: u64) -> Words {
        let words = Words::default();
        words[common].set(u64::from_be_bytes(class));
        words[common - 6].set(next);
        words[common + 3].set(frame);
        words
    }

    fn left(first: u64, seen: u64) -> Option<u64> {
        without_abandoned(first, seen, |frame| frame >= IN_USE)
    }

    #[test]
    fn only_exceptions_that_abandoned_frames_have_caught_are_taken_off() {
        for (common, class, dependent) in [
            (10, *b"GNUCC++\0", *b"GNUCC++\x01"),
            (12, *b"CLNGC++\0", *b"CLNGC++\x01"),
        ] {
            let oldest = exception(common, class, 0, IN_USE + 64);
            let server = exception(common, dependent, address(&oldest), IN_USE);
            let seen = exception(common, class, address(&server), 64);
            let request = exception(common, dependent, address(&seen), 32);
            let newest = exception(common, class, address(&request), 16);
            assert_eq!(left(address(&newest), 0), Some(address(&server)));
            assert_eq!(left(address(&newest), address(&seen)), Some(address(&seen)));
            assert_eq!(left(address(&server), 0), Some(address(&server)));
            seen[common - 6].set(0);
            assert_eq!(left(address(&newest), 0), Some(0));
        }
        assert_eq!(left(0, 8), Some(0));
    }

    #[test]
    fn damaged_lists_have_an_end() {
        let circle = exception(10, *b"GNUCC++\0", 0, 16);
        circle[4].set(address(&circle));
        assert_eq!(left(address(&circle), 0), None);
        for next in [8, 1 << 63, u64::MAX - 90, u64::MAX] {
            circle[4].set(next);
            assert_eq!(left(address(&circle), 0), None, "{next:#x}");
        }
        let foreign = exception(10, *b"MOZ\0RUST", 0, 16);
        assert_eq!(left(address(&foreign), 0), None);
    }
}
