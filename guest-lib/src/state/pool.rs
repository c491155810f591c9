//! States that no request has: a stack without a lock, since a thread may be cut short anywhere here.

use super::State;
use crate::error::Error;
use crate::os::region::Region;
use std::mem::size_of;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of an address. Above them the top counts changes, so that a thread that was away meanwhile does not take a top
/// that has gone and come back for the one that it has seen (but for 2^16 changes).
const ADDRESS: u64 = (1 << 48) - 1;

/// See the module's description. States live for ever, so one that was taken meanwhile can still be looked at.
struct Pool(AtomicU64);

fn state(top: u64) -> Option<&'static State> {
    // SAFETY: 0, or a state that was put in.
    unsafe { ((top & ADDRESS) as *const State).as_ref() }
}

impl Pool {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    fn change(&self, from: u64, to: *const State) -> Result<(), u64> {
        let to = (from & !ADDRESS).wrapping_add(ADDRESS + 1) | to as u64;
        let changed = self
            .0
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        changed.map(drop)
    }

    /// The newest, if there is one.
    fn take(&self) -> Option<&'static State> {
        let mut top = self.0.load(Ordering::Acquire);
        loop {
            let first = state(top)?;
            match self.change(top, first.next_free.load(Ordering::Relaxed)) {
                Ok(()) => return Some(first),
                Err(now) => top = now,
            }
        }
    }

    fn put(&self, free: &'static State) {
        let mut top = self.0.load(Ordering::Acquire);
        loop {
            let next = state(top).map_or(ptr::null(), ptr::from_ref);
            free.next_free.store(next.cast_mut(), Ordering::Relaxed);
            match self.change(top, free) {
                Ok(()) => return,
                Err(now) => top = now,
            }
        }
    }
}

/// States that no request has.
static POOL: Pool = Pool::new();

impl State {
    /// A state that no request has.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when there is no memory.
    pub(crate) fn take() -> Result<&'static Self, Error> {
        if let Some(state) = POOL.take() {
            return Ok(state);
        }
        let memory = Region::new(size_of::<Self>())?;
        let place = memory.place().cast::<Self>();
        std::mem::forget(memory);
        // SAFETY: fresh memory of the right size, page-aligned, that is never given back.
        unsafe {
            place.write(Self::new());
            Ok(place.as_ref())
        }
    }

    /// Gives a state back. If a thread has ended in the middle of the request, others may still work for it and
    /// have its key open: then neither is reused.
    pub(crate) fn give_back(&'static self) {
        if self.tag() == 0 {
            POOL.put(self);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::Mutex;

    #[test]
    fn every_state_is_taken_once_at_a_time() {
        let pool = Pool::new();
        assert!(pool.take().is_none());
        let states: Vec<_> = (0..8).map(|_| State::take().unwrap()).collect();
        for state in &states {
            pool.put(state);
        }
        let taken = Mutex::new(HashSet::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        let state = pool.take().unwrap();
                        assert!(taken.lock().unwrap().insert(ptr::from_ref(state).addr()));
                        assert!(taken.lock().unwrap().remove(&ptr::from_ref(state).addr()));
                        pool.put(state);
                    }
                });
            }
        });
        assert_eq!(std::iter::from_fn(|| pool.take()).count(), states.len());
        for state in &states {
            state.give_back();
        }
    }
}
