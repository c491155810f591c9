//! Domain keys: numbers them densely in the order in which they come.

use std::hash::{BuildHasher, RandomState};

use vmsrs_protocol::NONE;

/// Keys and their numbers. The bytes of all keys lie in one buffer, since there may be a million
/// keys of a few bytes each. The hash is seeded, so the guest cannot choose keys that collide.
#[derive(Default)]
pub(crate) struct KeyTable {
    bytes: Vec<u8>,
    /// End of each key in `bytes`; it starts where the one before it ends.
    ends: Vec<u32>,
    /// Open addressing with linear probing: numbers, or [`NONE`]. The length is a power of two.
    slots: Vec<u32>,
    hasher: RandomState,
}

impl KeyTable {
    /// Number of keys.
    pub(crate) fn len(&self) -> u32 {
        // Keys are limited to `MAX_DOMAINS`.
        self.ends.len() as u32
    }

    /// The key with a number.
    pub(crate) fn key(&self, number: u32) -> Option<&[u8]> {
        let index = number as usize;
        let end = *self.ends.get(index)? as usize;
        let start = match index {
            0 => 0,
            _ => self.ends[index - 1] as usize,
        };
        Some(&self.bytes[start..end])
    }

    /// The number of a key.
    pub(crate) fn find(&self, key: &[u8]) -> Option<u32> {
        if self.slots.is_empty() {
            return None;
        }
        match self.slots[self.slot(key)] {
            NONE => None,
            number => Some(number),
        }
    }

    /// Adds a key that is not there yet and returns its number.
    pub(crate) fn insert(&mut self, key: &[u8]) -> u32 {
        debug_assert!(self.find(key).is_none());
        let number = self.len();
        self.bytes.extend_from_slice(key);
        // At most `MAX_DOMAINS` keys of `KEY_MAX` bytes: 2^26.
        self.ends.push(self.bytes.len() as u32);
        if self.ends.len() * 4 > self.slots.len() * 3 {
            self.grow();
        } else {
            let slot = self.slot(key);
            self.slots[slot] = number;
        }
        number
    }

    /// Bytes of host memory in use.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.capacity() + (self.ends.capacity() + self.slots.capacity()) * size_of::<u32>()
    }

    /// The slot where a key is, or the empty one where it belongs. There is always an empty slot.
    fn slot(&self, key: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(key) as usize & mask;
        while self.slots[slot] != NONE && self.key(self.slots[slot]) != Some(key) {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// Makes room and enters every key again.
    fn grow(&mut self) {
        let length = (self.slots.len() * 2).max(8);
        self.slots = vec![NONE; length];
        for number in 0..self.len() {
            let slot = self.slot(self.key(number).unwrap_or_default());
            self.slots[slot] = number;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::KeyTable;

    #[test]
    fn keys_are_numbered_in_order_and_found_again() {
        let mut table = KeyTable::default();
        assert_eq!(table.find(b"user-0"), None);
        for number in 0..1000 {
            let key = format!("user-{number}");
            assert_eq!(table.find(key.as_bytes()), None);
            assert_eq!(table.insert(key.as_bytes()), number);
        }
        for number in 0..1000 {
            let key = format!("user-{number}");
            assert_eq!(table.find(key.as_bytes()), Some(number));
            assert_eq!(table.key(number), Some(key.as_bytes()));
        }
        assert_eq!(table.find(b"user-1000"), None);
        assert_eq!(table.key(1000), None);
    }
}
