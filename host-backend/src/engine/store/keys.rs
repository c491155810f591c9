//! Domain keys: numbers them densely in the order in which they come. A number whose key was removed can be another key's.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use vmsrs_protocol::NONE;

use super::grow;

/// Keys and their numbers. The bytes of all keys lie in one buffer, since there may be a million
/// keys of a few bytes each. The hash is seeded, so the guest cannot choose keys that collide.
///
/// The hash table is a linear one (Litwin, VLDB 1980): it grows by a bucket with each key, so that no
/// key waits until all others have found another place.
#[derive(Default)]
pub(crate) struct KeyTable {
    bytes: Vec<u8>,
    /// End of each key in `bytes`; it starts where the one before it ends.
    ends: Vec<u32>,
    /// The keys that numbers have instead since theirs was removed; empty while they have none.
    changed: HashMap<u32, Box<[u8]>>,
    /// The first key of each bucket, or [`NONE`]. There are as many buckets as numbers.
    buckets: Vec<u32>,
    /// The next key in the bucket of each key, or [`NONE`].
    next: Vec<u32>,
    hasher: RandomState,
}

impl KeyTable {
    /// Number of numbers, those without a key included.
    pub(crate) fn len(&self) -> u32 {
        // Keys are limited to `MAX_DOMAINS`.
        self.ends.len() as u32
    }

    /// The key with a number.
    pub(crate) fn key(&self, number: u32) -> Option<&[u8]> {
        if !self.changed.is_empty()
            && let Some(key) = self.changed.get(&number)
        {
            return Some(&**key).filter(|key| !key.is_empty());
        }
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
        if self.buckets.is_empty() {
            return None;
        }
        let mut number = self.buckets[self.bucket(key)];
        while number != NONE && self.key(number) != Some(key) {
            number = self.next[number as usize];
        }
        (number != NONE).then_some(number)
    }

    /// Adds a key that is not there yet and returns its number.
    pub(crate) fn insert(&mut self, key: &[u8]) -> u32 {
        debug_assert!(self.find(key).is_none());
        let number = self.len();
        grow(&mut self.bytes, key.len());
        self.bytes.extend_from_slice(key);
        grow(&mut self.ends, 1);
        // At most `MAX_DOMAINS` keys of `KEY_MAX` bytes: 2^26.
        self.ends.push(self.bytes.len() as u32);
        grow(&mut self.next, 1);
        self.next.push(NONE);
        self.split();
        self.link(number);
        number
    }

    /// Removes the key of a number.
    pub(crate) fn remove(&mut self, number: u32) {
        let Some(key) = self.key(number) else {
            return;
        };
        let bucket = self.bucket(key);
        let next = self.next[number as usize];
        if self.buckets[bucket] == number {
            self.buckets[bucket] = next;
        } else {
            let mut before = self.buckets[bucket];
            while self.next[before as usize] != number {
                before = self.next[before as usize];
            }
            self.next[before as usize] = next;
        }
        self.changed.insert(number, Box::default());
    }

    /// Gives a number whose key was removed one that is not there yet.
    pub(crate) fn insert_again(&mut self, key: &[u8], number: u32) {
        debug_assert!(self.find(key).is_none() && self.key(number).is_none());
        self.changed.insert(number, key.into());
        self.link(number);
    }

    /// Bytes of host memory in use.
    pub(crate) fn bytes(&self) -> usize {
        let words = self.ends.capacity() + self.buckets.capacity() + self.next.capacity();
        let changed: usize = self.changed.values().map(|key| key.len()).sum();
        self.bytes.capacity()
            + words * size_of::<u32>()
            + self.changed.capacity() * size_of::<(u32, Box<[u8]>)>()
            + changed
    }

    /// The bucket of a key: by as many bits of its hash as there are buckets for, by one bit less where
    /// that bucket does not exist yet.
    fn bucket(&self, key: &[u8]) -> usize {
        let hash = self.hasher.hash_one(key) as usize;
        let mask = self.buckets.len().next_power_of_two() - 1;
        match hash & mask {
            bucket if bucket < self.buckets.len() => bucket,
            bucket => bucket & (mask >> 1),
        }
    }

    /// Adds a bucket, and moves there the keys that are its own now.
    fn split(&mut self) {
        let added = self.buckets.len();
        grow(&mut self.buckets, 1);
        self.buckets.push(NONE);
        let Some(highest) = added.checked_ilog2() else {
            return;
        };
        // The bucket that has had its keys.
        let from = added & !(1 << highest);
        let mut number = std::mem::replace(&mut self.buckets[from], NONE);
        while number != NONE {
            let next = self.next[number as usize];
            self.link(number);
            number = next;
        }
    }

    /// Puts a key into its bucket.
    fn link(&mut self, number: u32) {
        let bucket = self.bucket(self.key(number).unwrap_or_default());
        self.next[number as usize] = self.buckets[bucket];
        self.buckets[bucket] = number;
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
            // Every key is found while the table grows.
            let earlier = format!("user-{}", number / 2);
            assert_eq!(table.find(earlier.as_bytes()), Some(number / 2));
        }
        for number in 0..1000 {
            let key = format!("user-{number}");
            assert_eq!(table.find(key.as_bytes()), Some(number));
            assert_eq!(table.key(number), Some(key.as_bytes()));
        }
        assert_eq!(table.find(b"user-1000"), None);
        assert_eq!(table.key(1000), None);
    }

    #[test]
    fn removed_keys_are_not_found_and_their_numbers_get_others() {
        let mut table = KeyTable::default();
        let key = |number: u32| format!("user-{number}").into_bytes();
        for number in 0..500 {
            table.insert(&key(number));
        }
        for number in (0..500).step_by(3) {
            table.remove(number);
            assert_eq!(table.find(&key(number)), None);
            assert_eq!(table.key(number), None);
        }
        for number in (0..500).step_by(6) {
            table.insert_again(&key(1000 + number), number);
        }
        // The table grows over them.
        for number in 500..700 {
            assert_eq!(table.insert(&key(number)), number);
        }
        for number in 0..700 {
            let expected = match (number < 500, number % 6) {
                (true, 0) => Some(key(1000 + number)),
                (true, 3) => None,
                _ => Some(key(number)),
            };
            assert_eq!(table.key(number), expected.as_deref(), "{number}");
            if let Some(key) = expected {
                assert_eq!(table.find(&key), Some(number));
            }
        }
    }
}
