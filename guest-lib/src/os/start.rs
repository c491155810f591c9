//! Starting threads: by the C library's own call, since `std` has each thread register a destructor, which waits for the
//! dynamic linker's lock.

use crate::error::Error;
use std::ffi::c_void;
use std::io;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

/// Runs `work` on a new, detached thread: a thread that is cut short before it has joined this one would leak its stack. A panic
/// ends there.
///
/// # Errors
///
/// [`Error::System`] when there are too many threads; the work is dropped then.
///
/// # Safety
///
/// What the work borrows outlives its use there.
pub(crate) unsafe fn start<F: FnOnce() + Send>(work: F) -> Result<(), Error> {
    extern "C" fn run<F: FnOnce()>(work: *mut c_void) -> *mut c_void {
        // SAFETY: itself, which nobody joins.
        unsafe { libc::pthread_detach(libc::pthread_self()) };
        // SAFETY: start() passes a box of it, which is nobody else's.
        let work = unsafe { Box::from_raw(work.cast::<F>()) };
        // A panic's message has been printed.
        let _ = catch_unwind(AssertUnwindSafe(work));
        ptr::null_mut()
    }
    let work = Box::into_raw(Box::new(work));
    let mut thread = MaybeUninit::<libc::pthread_t>::uninit();
    // SAFETY: writes the thread's name; the function has the right type.
    match unsafe { libc::pthread_create(thread.as_mut_ptr(), ptr::null(), run::<F>, work.cast()) } {
        0 => Ok(()),
        error => {
            // SAFETY: made above, and no thread has it.
            drop(unsafe { Box::from_raw(work) });
            let error = io::Error::from_raw_os_error(error);
            Err(Error::system("starting a thread")(error))
        }
    }
}
