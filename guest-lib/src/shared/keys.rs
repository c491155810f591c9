//! Which protection keys requests have, and which key is taken away from drafts to guard memory.
//!
//! No lock: the child of a fork may find it locked forever.

use crate::sync::{AtomicU64, Ordering};
use std::array;

/// Keys of the CPU. Key 0 is the default key of all memory.
pub(crate) const KEYS: usize = 16;

/// The first key for hot domains, which have this one and those after it, if there are plenty.
pub(crate) const FIRST_OF_DOMAINS: u32 = 11;

/// The state of a key. Alone in its cache line, which stays with the CPU of a thread that gets the
/// same key for each of its requests.
///
/// The lower half of the word counts the requests that have the key, the upper half how often it was
/// given back: if the word is the same twice, the key was neither taken nor given back in between (but for 2^32
/// times, after which two requests might share a key).
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Entry(pub(crate) AtomicU64);

/// The word of a key that no request gets.
pub(crate) const NOT_OURS: u64 = u64::MAX;

/// Added to the word when the key is given back.
const GIVEN_BACK: u64 = (1 << 32) - 1;

/// How often a request scans all keys before it shares one: with many requests on many CPUs, two scans
/// might never agree.
const LOOKS: usize = 8;

/// What [`Table::free`] is after the key was given back once more.
pub(crate) const fn next(free: u64) -> u64 {
    free.wrapping_add(1 << 32)
}

/// How many requests have the key; more than there can be if none gets it.
const fn requests(word: u64) -> u32 {
    word as u32
}

/// The library's keys for drafts, shared by all requests.
#[derive(Debug)]
pub(crate) struct Table<const N: usize = KEYS> {
    /// By the key's number. Key 0 is never the library's.
    pub(crate) entries: [Entry; N],
}

impl<const N: usize> Table<N> {
    /// The key is the library's from now on, and no request has it.
    pub(crate) fn put(&self, key: u32) {
        self.entries[key as usize].0.store(0, Ordering::Release);
    }

    /// Gives a request a key that no other one has. If there is none, they share: the request gets a key
    /// that few have, or 0 if there are no keys at all. `wanted`, if it is free, is the quickest.
    pub(crate) fn take(&self, wanted: u32) -> u32 {
        let free = |key: u32, word| requests(word) == 0 && self.change(key, word, word + 1);
        if free(wanted, self.look(wanted)) {
            return wanted;
        }
        let mut seen = self.look_at_all();
        for _ in 0..LOOKS {
            if let Some(key) = (1..N as u32).find(|&key| free(key, seen[key as usize])) {
                return key;
            }
            let again = self.look_at_all();
            let still = again == seen;
            seen = again;
            if still {
                // Nothing has changed between the two scans: all keys were in use at the same time.
                break;
            }
        }
        self.share(seen)
    }

    /// Takes the key again that a request gave back, if nobody has had it since. `free` is what [`Table::free`] was
    /// then.
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    pub(crate) fn take_again(&self, key: u32, free: u64) -> bool {
        self.change(key % N as u32, free, free + 1)
    }

    /// Gives back a key that no other request has, nor had since it was taken when it was `free`. Otherwise nothing has
    /// changed.
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    pub(crate) fn give_back_alone(&self, key: u32, free: u64) -> bool {
        self.change(key % N as u32, free + 1, next(free))
    }

    /// The key's word without the requests that have it: how often it was given back.
    pub(crate) fn free(&self, key: u32) -> u64 {
        self.look(key) & !u64::from(u32::MAX)
    }

    /// Gives a request one of the keys that the fewest had, or have by now.
    fn share(&self, mut seen: [u64; N]) -> u32 {
        loop {
            let count = |key: &u32| requests(seen[*key as usize]);
            let ours = (1..N as u32).filter(|&key| seen[key as usize] != NOT_OURS);
            let Some(key) = ours.min_by_key(count) else {
                return 0;
            };
            let word = seen[key as usize];
            if self.change(key, word, word + 1) {
                return key;
            }
            seen[key as usize] = self.look(key);
        }
    }

    /// A request gives up the key. No effect if no request has it.
    pub(crate) fn give_back(&self, key: u32) {
        if let Some(Entry(word)) = self.entries.get(key as usize) {
            let has = |word: u64| word != NOT_OURS && requests(word) != 0;
            // An error means that no request had it.
            let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                has(word).then(|| word.wrapping_add(GIVEN_BACK))
            });
        }
    }

    /// Withdraws a key that no request has, permanently; `None` if all are in use.
    pub(crate) fn withdraw(&self) -> Option<u32> {
        (1..FIRST_OF_DOMAINS.min(N as u32)).rev().find(|&key| {
            let word = self.look(key);
            requests(word) == 0 && self.change(key, word, NOT_OURS)
        })
    }

    fn look(&self, key: u32) -> u64 {
        let entry = self.entries.get(key as usize);
        entry.map_or(NOT_OURS, |Entry(word)| word.load(Ordering::Acquire))
    }

    fn look_at_all(&self) -> [u64; N] {
        array::from_fn(|key| self.look(key as u32))
    }

    #[inline]
    fn change(&self, key: u32, from: u64, to: u64) -> bool {
        let Entry(word) = &self.entries[key as usize];
        word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn table(keys: impl IntoIterator<Item = u32>) -> Table {
        let table = Table {
            entries: array::from_fn(|_| Entry(AtomicU64::new(NOT_OURS))),
        };
        keys.into_iter().for_each(|key| table.put(key));
        table
    }

    #[test]
    fn no_two_requests_share_a_key_while_one_is_free() {
        let table = table(1..16);
        // Whatever ended before, and whatever was wanted.
        for round in 0..40u32 {
            let wanted = |request: u32| (round * request) % 20;
            let keys: Vec<_> = (0..15).map(|request| table.take(wanted(request))).collect();
            let distinct: BTreeSet<_> = keys.iter().copied().collect();
            assert_eq!(distinct, (1..16).collect(), "{keys:?}");
            for key in keys {
                table.give_back(key);
            }
        }
    }

    #[test]
    fn more_requests_than_keys_share_them_evenly() {
        let table = table([2, 5, 9]);
        let mut keys: Vec<_> = (0..7).map(|_| table.take(0)).collect();
        keys.sort_unstable();
        assert_eq!(keys, [2, 2, 2, 5, 5, 9, 9]);
        for key in keys {
            table.give_back(key);
        }
        let keys: BTreeSet<_> = (0..3).map(|_| table.take(0)).collect();
        assert_eq!(keys, [2, 5, 9].into());
    }

    #[test]
    fn a_request_gets_the_key_that_it_wants_if_it_is_free() {
        let table = table(1..16);
        assert_eq!(table.take(7), 7);
        assert_ne!(table.take(7), 7);
        table.give_back(7);
        assert_eq!(table.take(7), 7);
    }

    #[test]
    fn a_key_is_taken_again_only_if_nobody_had_it_since() {
        let table = table([3, 4]);
        let [first, second, third] = [0, next(0), next(next(0))];
        assert!(table.take_again(3, first) && !table.take_again(3, first));
        assert!(table.give_back_alone(3, first) && table.take_again(3, second));
        // Another request shares it.
        assert_eq!((table.take(0), table.take(3)), (4, 3));
        assert!(!table.give_back_alone(3, second));
        table.give_back(3);
        assert_eq!(table.free(3), third);
        assert!(table.give_back_alone(3, third));
        assert!(!table.take_again(3, second) && table.take_again(3, next(third)));
        assert!(!table.take_again(0, 0) && !table.take_again(5, 0));
    }

    #[test]
    fn only_a_free_key_is_withdrawn_and_never_given_out() {
        let table = table([4, 6]);
        assert_eq!(table.take(6), 6);
        assert_eq!(table.withdraw(), Some(4));
        assert_eq!(table.withdraw(), None);
        assert_eq!(table.take(4), 6);
    }

    #[test]
    fn without_keys_a_request_has_key_0() {
        let table = table([]);
        assert_eq!(table.take(3), 0);
        table.give_back(0);
        assert_eq!((table.take(0), table.withdraw()), (0, None));
    }

    #[test]
    fn unused_keys_cannot_be_given_back() {
        let table = table([1]);
        for key in [0, 1, 2, 16, u32::MAX] {
            table.give_back(key);
        }
        assert_eq!((table.take(0), table.withdraw()), (1, None));
        table.give_back(1);
        assert_eq!((table.withdraw(), table.take(0)), (Some(1), 0));
    }
}
