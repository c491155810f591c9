//! Being told when a thread ends, and when the process exits.
//!
//! Destructors of thread-local variables would do, but to register one waits for the dynamic linker's lock
//! (`__cxa_thread_atexit_impl`), which another thread holds while it loads a library, and keeps forever if a
//! constructor there never returns. A key of POSIX threads has a destructor and no such lock.

use super::identity::thread_number;
use crate::error::Error;
use std::ffi::{c_int, c_void};
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

/// A key that a request deletes or sets by a number which it was never given, 0 for example, is not to be this one.
const FIRST: u32 = 512;

/// The key, or this if there is none yet.
const NONE: u32 = u32::MAX;
static KEY: AtomicU32 = AtomicU32::new(NONE);

/// Names the library's exit handler, so that it can be taken back.
static EXIT: u8 = 0;

/// Makes the key, once in a process: `end` runs at the end of each thread that has called [`watch`]. The caller
/// has the lock of opening apps.
///
/// # Errors
///
/// [`Error::System`].
pub(crate) fn install(end: unsafe extern "C" fn(*mut c_void)) -> Result<(), Error> {
    if KEY.load(Ordering::Relaxed) != NONE {
        return Ok(());
    }
    // The C library gives the lowest that is free.
    let mut low = Vec::new();
    let key = loop {
        match make(end) {
            Ok(key) if key < FIRST => low.push(key),
            made => break made,
        }
    };
    // There may be no more keys than that.
    let key = key.or_else(|error| low.pop().ok_or(error));
    for key in low {
        // SAFETY: a key that was made here, and that no thread has set.
        unsafe { libc::pthread_key_delete(key) };
    }
    KEY.store(
        key.map_err(Error::system("making a thread's destructor"))?,
        Ordering::Relaxed,
    );
    Ok(())
}

fn make(end: unsafe extern "C" fn(*mut c_void)) -> io::Result<u32> {
    let mut key = 0;
    // SAFETY: writes the key.
    match unsafe { libc::pthread_key_create(&raw mut key, Some(end)) } {
        0 => Ok(key),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Has the destructor called when the calling thread ends: also one that has begun to end, up to the limit of
/// `PTHREAD_DESTRUCTOR_ITERATIONS`.
///
/// # Errors
///
/// [`Error::System`] when there is no memory.
pub(crate) fn watch() -> Result<(), Error> {
    let key = KEY.load(Ordering::Relaxed);
    // SAFETY: the key was made before any thread was registered; the value is not null, and not followed.
    match unsafe { libc::pthread_setspecific(key, ptr::dangling()) } {
        0 => Ok(()),
        error => {
            let error = io::Error::from_raw_os_error(error);
            Err(Error::system("noting a thread's destructor")(error))
        }
    }
}

/// The thread that moves the exit handler to the front, or 0.
static MOVER: AtomicU32 = AtomicU32::new(0);

/// Has `exit` call the function before all exit handlers that are registered by now, on the thread that exits, whose
/// number is `me`. Called again, it moves the function to the front. One thread at a time: the other one's function
/// is as good.
pub(crate) fn watch_exit(me: u32, function: fn()) {
    unsafe extern "C" {
        fn __cxa_atexit(
            function: unsafe extern "C" fn(*mut c_void),
            argument: *mut c_void,
            owner: *const c_void,
        ) -> c_int;
        fn __cxa_finalize(owner: *const c_void);
    }
    unsafe extern "C" fn call(function: *mut c_void) {
        if MOVER.load(Ordering::Relaxed) != thread_number() {
            // SAFETY: watch_exit() passes a function of this type.
            unsafe { std::mem::transmute::<*mut c_void, fn()>(function)() }
        }
    }
    let is_first = MOVER.compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed);
    if is_first.is_err() {
        return;
    }
    let owner = (&raw const EXIT).cast();
    // SAFETY: calls and forgets the handlers that have this owner: that of an earlier call, which does nothing now.
    unsafe { __cxa_finalize(owner) };
    // Without memory for it the exit of a request is not seen: the server's handlers run as a part of it.
    // SAFETY: the function can be called at any time.
    unsafe { __cxa_atexit(call, function as *mut c_void, owner) };
    MOVER.store(0, Ordering::Relaxed);
}
