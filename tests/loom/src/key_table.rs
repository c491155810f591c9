//! The table of protection keys, with few of them.

use crate::keys::{KEYS, Table, bits};
use crate::sync::{AtomicU32, Ordering};

/// Keys 1 to `count`.
#[derive(Debug)]
pub struct KeyTable(Table);

impl KeyTable {
    /// A table that no thread has a key of.
    pub fn new(count: u32) -> Self {
        Self(Table {
            ours: AtomicU32::new((1..=count).map(bits).sum()),
            threads: [(); KEYS].map(|()| AtomicU32::new(0)),
        })
    }

    /// A thread's key, 0 for none.
    pub fn take(&self) -> u32 {
        self.0.take()
    }

    /// The thread has it no longer.
    pub fn give_back(&self, key: u32) {
        self.0.give_back(key);
    }

    /// Takes a key away from all threads.
    pub fn withdraw(&self) -> Option<u32> {
        self.0.withdraw()
    }

    /// Keys that threads can get.
    pub fn left(&self) -> u32 {
        self.0.ours.load(Ordering::Relaxed).count_ones() / 2
    }

    /// Threads that have the key.
    pub fn threads(&self, key: u32) -> u32 {
        self.0.threads[key as usize].load(Ordering::Relaxed)
    }
}
