//! What the C library keeps for the cancellation of a thread: whether and how it can be cancelled, and what is to be
//! done then.
//!
//! The latter is two lists whose elements lie in the frames of the functions that have entered something:
//! `_pthread_cleanup_push` (the C library's own functions: `fprintf` to unlock its stream, `system` to end its child) and
//! `__pthread_register_cancel` (`pthread_cleanup_push` in C). An abandoned frame stays on them, and the thread's end would
//! follow them. These functions are part of the C library's ABI; both store the list's head in a new element, and take
//! it back from there.

use std::ffi::{c_int, c_void};
use std::ptr;

/// An element of the first list.
#[repr(C)]
struct Cleanup {
    routine: Option<unsafe extern "C" fn(*mut c_void)>,
    argument: *mut c_void,
    cancel_type: c_int,
    previous: *mut Self,
}

/// An element of the second one, `__pthread_unwind_buf_t`.
#[repr(C)]
struct Unwinding {
    registers: [u64; 8],
    mask_was_saved: c_int,
    previous: *mut Self,
    rest: [u64; 3],
}

const ENABLE: c_int = 0;
const DISABLE: c_int = 1;
const DEFERRED: c_int = 0;

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
    fn pthread_setcanceltype(cancel_type: c_int, old: *mut c_int) -> c_int;
    fn _pthread_cleanup_push(
        element: *mut Cleanup,
        routine: unsafe extern "C" fn(*mut c_void),
        argument: *mut c_void,
    );
    fn _pthread_cleanup_pop(element: *mut Cleanup, execute: c_int);
    fn __pthread_register_cancel(element: *mut Unwinding);
    fn __pthread_unregister_cancel(element: *mut Unwinding);
}

/// Whether and how the calling thread can be cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cancellation {
    state: c_int,
    cancel_type: c_int,
}

impl Cancellation {
    /// As threads start.
    pub(crate) const START: Self = Self {
        state: ENABLE,
        cancel_type: DEFERRED,
    };

    /// That of the calling thread.
    pub(crate) fn current() -> Self {
        let mut current = Self::START;
        // SAFETY: the calling thread's own; both are as before afterwards.
        unsafe {
            pthread_setcancelstate(DISABLE, &raw mut current.state);
            pthread_setcanceltype(DEFERRED, &raw mut current.cancel_type);
        }
        current.set();
        current
    }

    /// Makes it that of the calling thread.
    pub(crate) fn set(self) {
        // SAFETY: the calling thread's own. Values that the C library gave.
        unsafe {
            pthread_setcanceltype(self.cancel_type, ptr::null_mut());
            pthread_setcancelstate(self.state, ptr::null_mut());
        }
    }
}

unsafe extern "C" fn nothing(_: *mut c_void) {}

/// Something that the C library wants done when the thread ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Routine {
    routine: unsafe extern "C" fn(*mut c_void),
    argument: *mut c_void,
}

impl Routine {
    /// Address of its code.
    pub(crate) fn address(&self) -> u64 {
        self.routine as *const () as u64
    }

    pub(super) fn argument(&self) -> u64 {
        self.argument as u64
    }

    /// Runs it.
    ///
    /// # Safety
    ///
    /// The frames of the function that has entered it are as it left them.
    pub(crate) unsafe fn run(&self) {
        // SAFETY: by contract.
        unsafe { (self.routine)(self.argument) };
    }
}

/// Where an element of a list lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// In an abandoned frame, as a whole.
    Dead,
    /// In a frame that is in use, or nowhere: the end of the list.
    Live,
    /// Where no element can be. An abandoned frame may have been overwritten.
    Wild,
}

/// Most elements that abandoned frames are expected to have; a circle has more.
const ELEMENTS_MAX: usize = 1000;

/// The address of the newest element of the first list, or 0. Async-signal-safe.
pub(super) fn newest_cleanup() -> u64 {
    let mut element = Cleanup {
        routine: None,
        argument: ptr::null_mut(),
        cancel_type: 0,
        previous: ptr::null_mut(),
    };
    // SAFETY: an element that is taken off again at once.
    unsafe {
        _pthread_cleanup_push(&raw mut element, nothing, ptr::null_mut());
        let newest = element.previous as u64;
        _pthread_cleanup_pop(&raw mut element, 0);
        newest
    }
}

/// Takes the elements in abandoned frames off the first list, the newest first, and gives the address and the routine of
/// each to `take`. `frame` says where an element of that many bytes lies.
#[inline]
pub(crate) fn drop_dead_cleanups(
    frame: impl Fn(u64, usize) -> Frame,
    mut take: impl FnMut(u64, Routine),
) {
    for _ in 0..ELEMENTS_MAX {
        let mut element = Cleanup {
            routine: None,
            argument: ptr::null_mut(),
            cancel_type: 0,
            previous: ptr::null_mut(),
        };
        // SAFETY: an element that is taken off again at once.
        unsafe { _pthread_cleanup_push(&raw mut element, nothing, ptr::null_mut()) };
        let newest = element.previous;
        let found = frame(newest as u64, size_of::<Cleanup>());
        let mut taken = None;
        match found {
            Frame::Live => {}
            Frame::Wild => element.previous = ptr::null_mut(),
            Frame::Dead => {
                // SAFETY: in a frame that is abandoned, and still mapped.
                let dead = unsafe { newest.read() };
                element.previous = dead.previous;
                taken = dead.routine.map(|routine| Routine {
                    routine,
                    argument: dead.argument,
                });
            }
        }
        // SAFETY: makes its `previous` the newest.
        unsafe { _pthread_cleanup_pop(&raw mut element, 0) };
        if let Some(routine) = taken {
            take(newest as u64, routine);
        }
        if found != Frame::Dead {
            return;
        }
    }
}

/// Takes elements in abandoned frames off the second list, without running anything: they are the server's.
#[inline]
pub(crate) fn drop_dead_unwindings(frame: impl Fn(u64, usize) -> Frame) {
    let mut element = Unwinding {
        registers: [0; 8],
        mask_was_saved: 0,
        previous: ptr::null_mut(),
        rest: [0; 3],
    };
    // SAFETY: as in drop_dead_cleanups().
    unsafe { __pthread_register_cancel(&raw mut element) };
    let mut steps = 0;
    loop {
        match frame(element.previous as u64, size_of::<Unwinding>()) {
            Frame::Live => break,
            Frame::Dead if steps < ELEMENTS_MAX => {
                // SAFETY: in a frame that is abandoned, and still mapped.
                element.previous = unsafe { (*element.previous).previous };
                steps += 1;
            }
            _ => element.previous = ptr::null_mut(),
        }
    }
    // SAFETY: makes its `previous` the newest.
    unsafe { __pthread_unregister_cancel(&raw mut element) };
}
