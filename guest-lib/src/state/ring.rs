//! The last blocks that a request took or freed.

use crate::state::domain::Domain;
use std::cell::{Cell, UnsafeCell};

/// A freed block, or a new one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Noted {
    pub(crate) domain: &'static Domain,
    pub(crate) address: u64,
}

/// The last `N` blocks noted.
#[derive(Debug)]
pub(crate) struct Ring<const N: usize> {
    entries: UnsafeCell<[Option<Noted>; N]>,
    next: Cell<usize>,
}

impl<const N: usize> Ring<N> {
    pub(crate) fn new() -> Self {
        Self {
            entries: UnsafeCell::new([None; N]),
            next: Cell::new(0),
        }
    }

    /// Notes a block; returns the one that was in its place.
    pub(crate) fn note(&self, noted: Noted) -> Option<Noted> {
        let place = self.next.get() % N;
        self.next.set(self.next.get() + 1);
        // SAFETY: one thread uses the ring at a time, and no reference into it outlives a method.
        unsafe { (*self.entries.get())[place].replace(noted) }
    }

    /// The entry at `place`, oldest places first.
    pub(crate) fn get(&self, place: usize) -> Option<Noted> {
        // SAFETY: as in note().
        unsafe { (&*self.entries.get()).get(place).copied().flatten() }
    }

    /// Takes the entry at `place`.
    pub(crate) fn take(&self, place: usize) -> Option<Noted> {
        // SAFETY: as in note().
        unsafe { (&mut *self.entries.get()).get_mut(place)?.take() }
    }

    /// How many blocks were noted, also in places that were used again.
    #[inline]
    pub(crate) fn noted(&self) -> usize {
        self.next.get()
    }

    /// Whether nothing was noted.
    #[cfg(test)]
    pub(crate) fn is_unused(&self) -> bool {
        self.noted() == 0
    }

    /// Places in use.
    pub(crate) fn used(&self) -> usize {
        self.next.get().min(N)
    }

    /// Forgets what is noted: in the places in use, or in `all`, in case a stray write has changed the
    /// ring.
    pub(crate) fn clear(&self, all: bool) {
        for place in 0..if all { N } else { self.used() } {
            self.take(place);
        }
        self.next.set(0);
    }

    #[cfg(test)]
    pub(crate) fn set_next(&self, next: usize) {
        self.next.set(next);
    }
}
