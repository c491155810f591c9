//! The mutexes of the server that a thread has locked in requests ([`crate::Mutex`]): they are released when the request fails.

use super::Thread;
use crate::error::Error;
use crate::os::mutex::RawMutex;
use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;

/// Most mutexes that a thread can have locked in requests at a time.
pub(crate) const MUTEXES_MAX: usize = 16;

/// Puts right what a mutex guards.
pub(crate) type Repair = unsafe extern "C-unwind" fn(*mut c_void);

/// A mutex that a thread has locked in a request.
#[derive(Clone, Copy)]
pub(crate) struct Locked {
    pub(crate) mutex: *const RawMutex,
    pub(crate) repair: Option<Repair>,
    pub(crate) argument: *mut c_void,
    /// The request's tag.
    tag: u64,
}

/// See the module's description.
pub(crate) struct Mutexes {
    places: [Cell<Option<Locked>>; MUTEXES_MAX],
    /// Places from here on are empty.
    used: Cell<usize>,
}

impl Default for Mutexes {
    fn default() -> Self {
        Self {
            places: [const { Cell::new(None) }; MUTEXES_MAX],
            used: Cell::new(0),
        }
    }
}

impl Mutexes {
    fn used(&self) -> &[Cell<Option<Locked>>] {
        &self.places[..self.used.get().min(MUTEXES_MAX)]
    }

    /// Takes out the newest one for which that is so.
    fn take(&self, which: impl Fn(&Locked) -> bool) -> Option<Locked> {
        let place = self
            .used()
            .iter()
            .rposition(|place| place.get().is_some_and(|locked| which(&locked)))?;
        let locked = self.places[place].take();
        let used = self.used().iter().rposition(|place| place.get().is_some());
        self.used.set(used.map_or(0, |last| last + 1));
        locked
    }
}

impl Thread {
    /// Whether one more mutex can be noted.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`].
    pub(crate) fn has_room_for_mutex(&self) -> Result<(), Error> {
        if self.mutexes.used.get() < MUTEXES_MAX {
            Ok(())
        } else {
            Err(Error::Limit("16 mutexes locked in requests"))
        }
    }

    /// Notes that the thread has just locked a mutex in its request, for which there is room.
    pub(crate) fn note_mutex(
        &self,
        mutex: &RawMutex,
        repair: Option<Repair>,
        argument: *mut c_void,
    ) {
        let used = self.mutexes.used.get();
        if let Some(place) = self.mutexes.places.get(used) {
            let tag = self.state().tag();
            place.set(Some(Locked {
                mutex,
                repair,
                argument,
                tag,
            }));
            self.mutexes.used.set(used + 1);
        }
    }

    /// Forgets a mutex that the thread releases.
    pub(crate) fn forget_mutex(&self, mutex: &RawMutex) {
        if self.mutexes.used.get() != 0 {
            self.mutexes.take(|locked| ptr::eq(locked.mutex, mutex));
        }
    }

    /// Whether the thread has locked a mutex in the request with that tag.
    pub(crate) fn has_mutex(&self, tag: u64) -> bool {
        let mut places = self.mutexes.used().iter();
        places.any(|place| place.get().is_some_and(|locked| locked.tag == tag))
    }

    /// Takes the newest mutex that the thread has locked in the request with that tag.
    pub(crate) fn take_mutex(&self, tag: u64) -> Option<Locked> {
        self.mutexes.take(|locked| locked.tag == tag)
    }
}
