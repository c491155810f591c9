//! Domain keys: numbers them densely in the order in which they come.

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
    /// The first key of each bucket, or [`NONE`]. There are as many buckets as keys.
    buckets: Vec<u32>,
    /// The next key in the bucket of each key, or [`NONE`].
    next: Vec<u32>,
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

    /// Bytes of host memory in use.
    pub(crate) fn bytes(&self) -> usize {
        let words = self.ends.capacity() + self.buckets.capacity() + self.next.capacity();
        self.bytes.capacity() + words * size_of::<u32>()
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
}
