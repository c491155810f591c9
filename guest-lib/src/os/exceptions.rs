//! The C++ runtime's state of exceptions of a thread: those that are being handled, and how many are on their way. Code that
//! was cut short in a handler, or while its frames were unwound, leaves them there.

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

    /// Makes them those of the calling thread.
    pub(crate) fn set(self) {
        if let Some(place) = Self::place() {
            // SAFETY: the calling thread's own.
            unsafe { place.write(self) };
        }
    }
}
