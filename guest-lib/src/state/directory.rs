//! What a process has opened, by key: without a lock, since a thread may be cut short anywhere here, and
//! servers look up domains on the way into each request.
//!
//! A chain for each value of the key's hash, the newest entry first. Entries that are taken out are never freed.

use crate::error::Error;
use crate::os::region::Region;
use std::hash::{BuildHasher, RandomState};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};

/// Chains. They take memory when the first entry of 512 neighbours is added.
const CHAINS: usize = 1 << 18;

/// Something with a key, which never changes.
pub(super) trait Entry: Sized + 'static {
    fn key(&self) -> &[u8];
    /// The next one of its chain.
    fn next(&self) -> &AtomicPtr<Self>;
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Directory<E> {
    chains: NonNull<AtomicPtr<E>>,
    /// Keys are what users choose: nobody can choose them so that they share a chain.
    hasher: RandomState,
}

// SAFETY: atomics, which live as long as the process.
unsafe impl<E: Sync> Send for Directory<E> {}
// SAFETY: as above.
unsafe impl<E: Sync> Sync for Directory<E> {}

impl<E: Entry> Directory<E> {
    /// # Errors
    ///
    /// [`Error::System`] when there is no memory.
    pub(super) fn new() -> Result<Self, Error> {
        let memory = Region::new(CHAINS * size_of::<AtomicPtr<E>>())?;
        let chains = memory.place().cast();
        std::mem::forget(memory);
        Ok(Self {
            chains,
            hasher: RandomState::new(),
        })
    }

    fn chain(&self, key: &[u8]) -> &AtomicPtr<E> {
        let place = self.hasher.hash_one(key) as usize % CHAINS;
        // SAFETY: below the number of chains, in memory that is never given back; zeros are empty chains.
        unsafe { self.chains.add(place).as_ref() }
    }

    /// The entry with that key, if it was added.
    pub(super) fn find(&self, key: &[u8]) -> Option<&'static E> {
        find(self.chain(key).load(Ordering::Acquire), key)
    }

    /// Adds an entry, unless another thread has added one with its key; returns the one that counts.
    pub(super) fn insert(&self, entry: E) -> &'static E {
        let entry = Box::into_raw(Box::new(entry));
        // SAFETY: just made, and dropped only where nobody else knows it.
        let added: &'static E = unsafe { &*entry };
        let chain = self.chain(added.key());
        let mut first = chain.load(Ordering::Acquire);
        loop {
            if let Some(other) = find(first, added.key()) {
                // SAFETY: made above, and nobody else knows it.
                drop(unsafe { Box::from_raw(entry) });
                return other;
            }
            added.next().store(first, Ordering::Relaxed);
            match chain.compare_exchange(first, entry, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return added,
                Err(now) => first = now,
            }
        }
    }

    /// Takes an entry out, if it is in: it is not found any more, but lives on for those who have it. One thread at a time.
    pub(super) fn remove(&self, entry: &'static E) {
        let place = ptr::from_ref(entry).cast_mut();
        let chain = self.chain(entry.key());
        let next = entry.next().load(Ordering::Acquire);
        let mut first = chain.load(Ordering::Acquire);
        while first == place {
            // Others only add entries before it.
            match chain.compare_exchange(first, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => first = now,
            }
        }
        let before = entries(first).find(|before| before.next().load(Ordering::Acquire) == place);
        if let Some(before) = before {
            // Who looks at the entry at the moment goes on from there.
            before.next().store(next, Ordering::Release);
        }
    }
}

/// The entries from one on.
fn entries<E: Entry>(first: *mut E) -> impl Iterator<Item = &'static E> {
    let follow = |place: *mut E| -> Option<&'static E> {
        // SAFETY: null, or an entry that was added, and so lives as long as the process.
        unsafe { ptr::NonNull::new(place).map(|place| place.as_ref()) }
    };
    std::iter::successors(follow(first), move |entry| {
        follow(entry.next().load(Ordering::Acquire))
    })
}

fn find<E: Entry>(first: *mut E, key: &[u8]) -> Option<&'static E> {
    entries(first).find(|entry| entry.key() == key)
}

#[cfg(test)]
mod tests {
    use crate::mock::MockBackend;
    use std::collections::HashSet;

    #[test]
    fn threads_that_open_a_domain_at_once_get_the_same() {
        let app = MockBackend::app("opened at once", |_| ());
        let open = || -> Vec<usize> {
            let key = |number: u32| format!("domain {number}");
            let address = |number| std::ptr::from_ref(app.domain(key(number)).unwrap()).addr();
            (0..300).map(address).collect()
        };
        let first = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            let mut all = threads.into_iter().map(|thread| thread.join().unwrap());
            let first = all.next().unwrap();
            assert!(all.all(|other| other == first));
            first
        });
        assert_eq!(open(), first);
        assert_eq!(first.iter().collect::<HashSet<_>>().len(), 300);
    }
}
