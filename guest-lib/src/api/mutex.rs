//! Mutexes for what lies outside of domains.

use crate::error::Error;
use crate::os::identity::thread_number;
use crate::os::mutex::RawMutex;
use crate::run::left::working;
use crate::thread::mutexes::Repair;
use crate::thread::{self, Thread, uninterrupted};
use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::fmt;
use std::ptr;

/// The calling thread's number in the kernel.
fn me() -> u32 {
    thread::current().map_or_else(thread_number, Thread::number)
}

/// The calling thread, if it works for a request, or runs its defers.
fn in_request() -> Option<&'static Thread> {
    working().filter(|thread| thread.can_divert())
}

/// Takes the mutex for the calling thread; with a wait, unless that is 0.
///
/// # Errors
///
/// [`Error::AlreadyHeld`], [`Error::Limit`]; [`Error::LockTimeout`] where it is taken and the call must not wait.
pub(crate) fn lock(
    mutex: &RawMutex,
    repair: Option<Repair>,
    argument: *mut c_void,
    wait: bool,
) -> Result<(), Error> {
    let (me, thread) = (me(), in_request());
    if mutex.is_owned_by(me) {
        return Err(Error::AlreadyHeld);
    }
    if let Some(thread) = thread {
        thread.has_room_for_mutex()?;
    }
    // An interrupt finds it noted, or not taken.
    let take = |take: fn(&RawMutex, u32) -> bool| {
        uninterrupted(|| {
            let taken = take(mutex, me);
            if let Some(thread) = thread.filter(|_| taken) {
                thread.note_mutex(mutex, repair, argument);
            }
            taken
        })
    };
    if take(RawMutex::try_take) {
        return Ok(());
    }
    if !wait {
        return Err(Error::LockTimeout { milliseconds: 0 });
    }
    while !take(RawMutex::take_or_await) {
        mutex.sleep();
        if let Some(thread) = thread {
            // A deadline, or the failure of another thread of the request.
            thread.act_on_pending();
        }
    }
    Ok(())
}

/// Releases the mutex, which the calling thread has.
///
/// # Errors
///
/// [`Error::NotHeld`].
pub(crate) fn unlock(mutex: &RawMutex) -> Result<(), Error> {
    if !mutex.is_owned_by(me()) {
        return Err(Error::NotHeld);
    }
    uninterrupted(|| {
        if let Some(thread) = thread::current() {
            thread.forget_mutex(mutex);
        }
        mutex.release();
    });
    Ok(())
}

/// A mutex for what lies outside of domains and is shared by requests: a cache, a table of connections. Unlike another mutex, which
/// a failed request leaves locked for ever, this one is released when the request fails or is given up that has locked it,
/// after `repair` has put right what it guards. That runs like a defer: outside of the request, when its domains are free. It is cut
/// short after 5 seconds. Mutexes that a defer or a repair has locked are released if that fails.
///
/// What it guards is not restored: `repair` finds it as the request has left it, perhaps in the middle of a change, or with what
/// a stray write has done to it. Where that can be, keep it in a domain.
pub struct Mutex<T> {
    raw: RawMutex,
    repair: fn(&mut T),
    value: UnsafeCell<T>,
}

// SAFETY: one thread at a time uses the value.
unsafe impl<T: Send> Sync for Mutex<T> {}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Mutex")
            .field("raw", &self.raw)
            .finish_non_exhaustive()
    }
}

impl<T: Send> Mutex<T> {
    /// A mutex that guards a value. `repair` makes a value whole that may be in the middle of any change that requests make to it.
    pub const fn new(value: T, repair: fn(&mut T)) -> Self {
        Self {
            raw: RawMutex::new(),
            repair,
            value: UnsafeCell::new(value),
        }
    }

    /// Runs `code` with the value, with the mutex locked: in a request or outside. A thread that waits in a request comes to its landing
    /// if that fails. If `code` panics, the value is repaired first.
    ///
    /// There is no guard: one that is kept where its request is given up would reach the value of a mutex that was released.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyHeld`] if the thread has it; [`Error::Limit`] after 16 mutexes locked in requests.
    pub fn with<R>(&'static self, code: impl FnOnce(&mut T) -> R) -> Result<R, Error> {
        self.with_lock(true, code)
    }

    /// The same if the mutex is free.
    ///
    /// # Errors
    ///
    /// [`Error::LockTimeout`] if it is not; otherwise as [`Mutex::with`].
    pub fn try_with<R>(&'static self, code: impl FnOnce(&mut T) -> R) -> Result<R, Error> {
        self.with_lock(false, code)
    }

    fn with_lock<R>(&'static self, wait: bool, code: impl FnOnce(&mut T) -> R) -> Result<R, Error> {
        let argument = ptr::from_ref(self).cast_mut().cast();
        lock(&self.raw, Some(Self::repair_raw), argument, wait)?;
        let mut locked = Locked {
            mutex: self,
            unwinds: true,
        };
        // SAFETY: the thread has the mutex until `locked` is dropped. Where this is cut short, the frames are abandoned before the
        // library releases it.
        let value = code(unsafe { &mut *self.value.get() });
        locked.unwinds = false;
        drop(locked);
        Ok(value)
    }

    unsafe extern "C-unwind" fn repair_raw(argument: *mut c_void) {
        // SAFETY: with_lock() passes the mutex, which lives as long as the process.
        let mutex = unsafe { &*argument.cast::<Self>() };
        // SAFETY: the thread has the mutex, and the frames that have used the value are abandoned.
        (mutex.repair)(unsafe { &mut *mutex.value.get() });
    }
}

/// A [`Mutex`] that the calling thread has locked.
struct Locked<T: Send + 'static> {
    mutex: &'static Mutex<T>,
    /// Unless the code has returned. `std::thread::panicking` is about the thread, and may be about another panic.
    unwinds: bool,
}

impl<T: Send> Drop for Locked<T> {
    fn drop(&mut self) {
        let mutex = self.mutex;
        if self.unwinds {
            // SAFETY: the thread has the mutex, and what used the value has unwound.
            (mutex.repair)(unsafe { &mut *mutex.value.get() });
        }
        let released = unlock(&mutex.raw);
        debug_assert!(released.is_ok());
    }
}
