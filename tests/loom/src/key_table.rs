//! The table of protection keys, with few of them, and what requests do with their drafts.

use crate::keys::{Entry, NOT_OURS, Table, next};
use crate::protected::Protected;
use crate::sync::AtomicU64;

/// Number of keys at most, and key 0.
const KEYS: usize = 4;

/// The keys, and what is written with each: by one request at a time.
pub struct KeyTable {
    table: Table<KEYS>,
    drafts: [Protected; KEYS],
}

impl KeyTable {
    /// Keys 1 to `count` (3 at most), which no request has.
    pub fn new(count: u32) -> Self {
        let table = Table {
            entries: [(); KEYS].map(|()| Entry(AtomicU64::new(NOT_OURS))),
        };
        (1..=count).for_each(|key| table.put(key));
        Self {
            table,
            drafts: [(); KEYS].map(|()| Protected::default()),
        }
    }

    /// A request's key, 0 for none.
    pub fn take(&self, wanted: u32) -> u32 {
        self.table.take(wanted)
    }

    /// The request has it no longer.
    pub fn give_back(&self, key: u32) {
        self.table.give_back(key);
    }

    /// A request's key and its word without requests: the last one if nobody has had it since, as a thread does.
    pub fn take_as_thread(&self, last: (u32, u64)) -> (u32, u64) {
        if self.table.take_again(last.0, last.1) {
            return last;
        }
        let key = self.table.take(last.0);
        (key, self.table.free(key))
    }

    /// The request has it no longer.
    pub fn give_back_as_thread(&self, (key, free): (u32, u64)) -> (u32, u64) {
        if self.table.give_back_alone(key, free) {
            return (key, next(free));
        }
        self.table.give_back(key);
        (key, self.table.free(key))
    }

    /// Takes a key away from all requests.
    pub fn withdraw(&self) -> Option<u32> {
        self.table.withdraw()
    }

    /// Writes to a draft with the key: two requests that do so at once end the test.
    pub fn write(&self, key: u32) {
        self.drafts[key as usize].touch();
    }
}
