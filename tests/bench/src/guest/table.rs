//! A key-value server's hash table: the same code for ordinary memory and for blocks of domains.

use std::hash::{BuildHasher, Hasher};

/// Bytes of a value.
pub(super) const VALUE: usize = 56;

/// Entries of a table, a power of two.
const ENTRIES: usize = 1024;

/// A key, 0 for none, and its value: a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Entry {
    key: u64,
    value: [u8; VALUE],
}

/// A table of [`ENTRIES`] slots with linear probing. All zeros is an empty table.
#[repr(transparent)]
pub(super) struct Table([Entry; ENTRIES]);

/// The hash of a key, the same in every run.
fn hash(key: u64) -> usize {
    let mut hasher =
        std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::new().build_hasher();
    hasher.write_u64(key);
    hasher.finish() as usize
}

impl Table {
    pub(super) fn new() -> Self {
        let free = Entry {
            key: 0,
            value: [0; VALUE],
        };
        Self([free; ENTRIES])
    }

    /// The slot of a key, or the free slot for it; `None` when the table is full.
    fn slot(&self, key: u64) -> Option<usize> {
        let first = hash(key);
        (0..ENTRIES)
            .map(|step| (first + step) % ENTRIES)
            .find(|&slot| self.0[slot].key == key || self.0[slot].key == 0)
    }

    /// The value of a key, which is not 0.
    pub(super) fn get(&self, key: u64) -> Option<&[u8; VALUE]> {
        let entry = &self.0[self.slot(key)?];
        (entry.key == key).then_some(&entry.value)
    }

    /// Sets the value of a key, which is not 0; false when the table is full.
    pub(super) fn put(&mut self, key: u64, value: [u8; VALUE]) -> bool {
        let Some(slot) = self.slot(key) else {
            return false;
        };
        self.0[slot] = Entry { key, value };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_is_found() {
        let mut table = Box::new(Table::new());
        for round in 0..2 {
            for key in 1..=500 {
                assert!(table.put(key, [(key + round) as u8; VALUE]));
            }
        }
        for key in 1..=500 {
            assert_eq!(table.get(key), Some(&[(key + 1) as u8; VALUE]));
        }
        assert_eq!(table.get(501), None);
    }

    #[test]
    fn a_full_table_refuses_other_keys() {
        let mut table = Box::new(Table::new());
        for key in 1..=ENTRIES as u64 {
            assert!(table.put(key, [1; VALUE]));
        }
        assert!(!table.put(9999, [1; VALUE]));
        assert!(table.put(7, [2; VALUE]));
        assert_eq!(table.get(9999), None);
    }
}
