//! Which threads have which protection key, and which key is taken away from drafts to guard memory.
//!
//! No lock: the child of a fork may find one locked for ever.

use crate::sync::{AtomicU32, Ordering};

/// Keys of the CPU. Key 0 is everybody's.
pub(crate) const KEYS: usize = 16;

/// Both bits that PKRU has for a key.
pub(crate) const fn bits(key: u32) -> u32 {
    0b11 << (2 * key)
}

/// The library's keys for drafts, shared by all threads.
#[derive(Debug)]
pub(crate) struct Table {
    /// Both bits of each of them.
    pub(crate) ours: AtomicU32,
    /// How many threads have each key; those without a key have key 0.
    pub(crate) threads: [AtomicU32; KEYS],
}

impl Table {
    /// Gives a thread the key that the fewest have (a choice that is not the best does no harm); 0 if
    /// there are none.
    pub(crate) fn take(&self) -> u32 {
        loop {
            let ours = self.ours.load(Ordering::Relaxed);
            let key = (1..KEYS as u32)
                .filter(|&key| ours & bits(key) != 0)
                .min_by_key(|&key| self.threads[key as usize].load(Ordering::Relaxed))
                .unwrap_or(0);
            self.threads[key as usize].fetch_add(1, Ordering::AcqRel);
            // `withdraw` reads the count by a change as well, so one of the two comes first: either it sees
            // this thread, or this thread sees here that the key is gone.
            if key == 0 || self.ours.load(Ordering::Relaxed) & bits(key) != 0 {
                return key;
            }
            self.give_back(key);
        }
    }

    /// A thread has the key no longer.
    pub(crate) fn give_back(&self, key: u32) {
        self.threads[key as usize].fetch_sub(1, Ordering::AcqRel);
    }

    /// Takes a key away that no thread has, for good; nothing if they have all of them. One caller at a
    /// time.
    pub(crate) fn withdraw(&self) -> Option<u32> {
        let is_free = |key: u32| self.threads[key as usize].fetch_add(0, Ordering::AcqRel) == 0;
        (1..KEYS as u32).rev().find(|&key| {
            if self.ours.load(Ordering::Relaxed) & bits(key) == 0 || !is_free(key) {
                return false;
            }
            self.ours.fetch_and(!bits(key), Ordering::Relaxed);
            if is_free(key) {
                return true;
            }
            self.ours.fetch_or(bits(key), Ordering::Relaxed);
            false
        })
    }
}
