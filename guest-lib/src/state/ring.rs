//! The last blocks that a request took or freed.

use crate::state::domain::Domain;
use std::cell::{Cell, UnsafeCell};

/// A freed block, or a new one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Noted {
    pub(crate) domain: &'static Domain,
    pub(crate) address: u64,
}

/// A block, and the request that has noted it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    tag: u64,
    noted: Option<Noted>,
}

impl Entry {
    const EMPTY: Self = Self {
        tag: 0,
        noted: None,
    };

    fn of(self, tag: u64) -> Option<Noted> {
        self.noted.filter(|_| self.tag == tag)
    }
}

/// The last `N` blocks that a request has noted.
///
/// Each request has another tag, and sees only what was noted with it: nothing has to be erased between two requests,
/// whatever a stray write has made of the count.
#[derive(Debug)]
pub(crate) struct Ring<const N: usize> {
    entries: UnsafeCell<[Entry; N]>,
    next: Cell<usize>,
}

impl<const N: usize> Ring<N> {
    pub(crate) fn new() -> Self {
        Self {
            entries: UnsafeCell::new([Entry::EMPTY; N]),
            next: Cell::new(0),
        }
    }

    /// Notes a block of the request with that tag; returns the one of it that was in its place.
    pub(crate) fn note(&self, tag: u64, noted: Noted) -> Option<Noted> {
        let place = self.next.get() % N;
        self.next.set(self.next.get() + 1);
        let noted = Some(noted);
        // SAFETY: one thread uses the ring at a time, and no reference into it outlives a method.
        let before = unsafe { &mut (*self.entries.get())[place] };
        std::mem::replace(before, Entry { tag, noted }).of(tag)
    }

    /// What the request with that tag has at `place`, oldest places first.
    pub(crate) fn get(&self, tag: u64, place: usize) -> Option<Noted> {
        // SAFETY: as in note().
        unsafe { (&*self.entries.get()).get(place)?.of(tag) }
    }

    /// Empties a place.
    pub(crate) fn forget(&self, place: usize) {
        // SAFETY: as in note().
        if let Some(entry) = unsafe { (&mut *self.entries.get()).get_mut(place) } {
            *entry = Entry::EMPTY;
        }
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

    /// The request is over.
    pub(crate) fn restart(&self) {
        self.next.set(0);
    }

    #[cfg(test)]
    pub(crate) fn set_next(&self, next: usize) {
        self.next.set(next);
    }
}
