//! The mutexes of the server that a thread has locked in requests ([`crate::Mutex`]), and in what runs when a request has failed:
//! they are released when that fails.

use super::{Phase, Thread};
use crate::error::Error;
use crate::os::mutex::RawMutex;
use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;

/// Most mutexes that a thread can have locked in requests at a time.
pub(crate) const MUTEXES_MAX: usize = 16;

/// So many more can be locked by the defers and the repairs of a request that has used up all of those.
const PLACES: usize = MUTEXES_MAX + 8;

/// Puts right what a mutex guards.
pub(crate) type Repair = unsafe extern "C-unwind" fn(*mut c_void);

/// In what a mutex was locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The request with that tag.
    Request(u64),
    /// The defer, or the repair, that runs now.
    Defer,
    /// One that has failed.
    Failed,
}

/// A mutex that a thread has locked.
#[derive(Clone, Copy)]
pub(crate) struct Locked {
    pub(crate) mutex: *const RawMutex,
    /// Until it has run.
    pub(crate) repair: Option<Repair>,
    pub(crate) argument: *mut c_void,
    place: Place,
}

/// See the module's description. The oldest comes first.
pub(crate) struct Mutexes {
    places: [Cell<Option<Locked>>; PLACES],
    /// Places from here on are empty.
    used: Cell<usize>,
    /// The tag of the request that has failed, while its mutexes are being released, or 0.
    releasing: Cell<u64>,
}

impl Default for Mutexes {
    fn default() -> Self {
        Self {
            places: [const { Cell::new(None) }; PLACES],
            used: Cell::new(0),
            releasing: Cell::new(0),
        }
    }
}

impl Mutexes {
    fn used(&self) -> &[Cell<Option<Locked>>] {
        &self.places[..self.used.get().min(PLACES)]
    }

    /// The newest one for which that is so.
    fn find(&self, which: impl Fn(&Locked) -> bool) -> Option<&Cell<Option<Locked>>> {
        let mut places = self.used().iter();
        places.rfind(|place| place.get().is_some_and(|locked| which(&locked)))
    }

    /// Takes out the newest one for which that is so.
    fn take(&self, which: impl Fn(&Locked) -> bool) -> Option<Locked> {
        let locked = self.find(which)?.take();
        let used = self.used().iter().rposition(|place| place.get().is_some());
        self.used.set(used.map_or(0, |last| last + 1));
        locked
    }

    /// Keeps those for which that is so, without gaps.
    fn retain(&self, which: impl Fn(&Locked) -> bool) {
        let mut kept = 0;
        for place in self.used() {
            let locked = place.take().filter(&which);
            if locked.is_some() {
                self.places[kept].set(locked);
                kept += 1;
            }
        }
        self.used.set(kept);
    }

    /// Whether it has to be released.
    fn is_due(&self, locked: &Locked) -> bool {
        locked.place == Place::Failed || locked.place == Place::Request(self.releasing.get())
    }
}

impl Thread {
    /// Whether one more mutex can be noted. Those that were left locked by requests that are over need no place any more.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`].
    pub(crate) fn has_room_for_mutex(&self) -> Result<(), Error> {
        let (tag, most) = match self.phase() {
            Phase::Running => (self.state().tag(), MUTEXES_MAX),
            _ => (self.mutexes.releasing.get(), PLACES),
        };
        let is_full = || self.mutexes.used.get() >= most;
        if is_full() {
            let is_over = |place| matches!(place, Place::Request(other) if other != tag);
            let drop_old = || self.mutexes.retain(|locked| !is_over(locked.place));
            self.critical(drop_old);
        }
        if is_full() {
            return Err(Error::Limit("16 mutexes locked in requests"));
        }
        Ok(())
    }

    /// Notes that the thread has just locked a mutex in its request or its defer, for which there is room.
    pub(crate) fn note_mutex(
        &self,
        mutex: &RawMutex,
        repair: Option<Repair>,
        argument: *mut c_void,
    ) {
        let used = self.mutexes.used.get();
        if let Some(free) = self.mutexes.places.get(used) {
            let place = match self.phase() {
                Phase::Running => Place::Request(self.state().tag()),
                _ => Place::Defer,
            };
            free.set(Some(Locked {
                mutex,
                repair,
                argument,
                place,
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
        let is_it = |locked: &Locked| locked.place == Place::Request(tag);
        self.mutexes.find(is_it).is_some()
    }

    /// Those that the thread has locked in the request with that tag have to be released; 0 for none.
    pub(crate) fn set_releasing(&self, tag: u64) {
        self.mutexes.releasing.set(tag);
    }

    /// A defer or a repair is over. If it has failed, the mutexes that it has locked have to be released; otherwise they stay locked
    /// until the thread unlocks them.
    pub(crate) fn settle_mutexes(&self, failed: bool) {
        if self.mutexes.used.get() == 0 {
            return;
        }
        if !failed {
            self.mutexes.retain(|locked| locked.place != Place::Defer);
        }
        for noted in self.mutexes.used() {
            if let Some(locked) = noted.get().filter(|locked| locked.place == Place::Defer) {
                let place = Place::Failed;
                noted.set(Some(Locked { place, ..locked }));
            }
        }
    }

    /// The newest mutex that has to be released. Its repair is given once. It stays noted until [`Thread::forget_due_mutex`]: so a repair
    /// may be left for good.
    pub(crate) fn due_mutex(&self) -> Option<Locked> {
        let noted = self.mutexes.find(|locked| self.mutexes.is_due(locked))?;
        let locked = noted.get()?;
        let repair = None;
        noted.set(Some(Locked { repair, ..locked }));
        Some(locked)
    }

    /// Forgets it. False if its repair has unlocked it.
    pub(crate) fn forget_due_mutex(&self, mutex: *const RawMutex) -> bool {
        let is_it = |locked: &Locked| ptr::eq(locked.mutex, mutex) && self.mutexes.is_due(locked);
        self.mutexes.take(is_it).is_some()
    }
}
