//! What a request wants to be done once it is committed.
//!
//! The list is memory of the library that the request could write to by a wrong pointer, so each entry has a check word, and so has
//! what tells how many there are: nothing is called that was not registered.

use super::State;
use super::check::check_word;
use super::deferred::Deferred;
use super::joining::ON_COMMIT;
use super::list_memory::ListMemory;
use crate::error::Error;
use std::ops::Range;

/// Most functions of one request.
pub(crate) const ON_COMMIT_MAX: usize = 1 << 18;

/// Bytes of the list that keep their memory between requests.
const KEPT: usize = 64 * 1024;

#[repr(C)]
struct Entry {
    words: [u64; 3],
    check: u64,
}

/// A list of such functions, in the order in which they were registered. Its end is that of those which are due however the request
/// ends: an intermediate commit has come after them.
pub(crate) struct OnCommit(ListMemory);

impl OnCommit {
    pub(super) fn new() -> Self {
        Self(ListMemory::new())
    }

    fn entry(&self, place: usize) -> Option<*mut Entry> {
        let memory = self.0.region()?;
        (place < ON_COMMIT_MAX).then(|| memory.low().cast::<Entry>().wrapping_add(place))
    }

    /// The list is whole, and has room.
    fn push(&mut self, deferred: Deferred) {
        let (place, tag) = (self.0.count(), self.0.tag());
        if let Some(entry) = self.entry(place) {
            let words = deferred.into_words();
            let check = check_word(tag ^ place as u64, words);
            // SAFETY: inside the region, which is the list's alone.
            unsafe { entry.write(Entry { words, check }) };
            self.0.set(tag, place + 1, self.0.end());
        }
    }

    /// The words of a function, if they are as they were registered.
    fn words(&self, place: usize) -> Option<[u64; 3]> {
        let entry = self.entry(place)?;
        // SAFETY: as in push(); any words are good ones.
        let Entry { words, check } = unsafe { entry.read() };
        (check == check_word(self.0.tag() ^ place as u64, words)).then_some(words)
    }

    /// Whether a function is as it was registered.
    pub(crate) fn has(&self, place: usize) -> bool {
        self.words(place).is_some()
    }

    /// A function, which must be taken once; `None` if a stray write has changed the list.
    pub(crate) fn take(&self, place: usize) -> Option<Deferred> {
        let words = self.0.is_whole().then(|| self.words(place))??;
        // SAFETY: they were made in push(), as the check says.
        Some(unsafe { Deferred::from_words(words) })
    }

    /// The places of those that are due although the request has failed, or was given up, and of the others. `None` if a stray
    /// write has changed the list.
    pub(crate) fn places(&self) -> Option<[Range<usize>; 2]> {
        self.0
            .is_whole()
            .then(|| [0..self.0.end(), self.0.end()..self.0.count()])
    }
}

impl State {
    /// Takes it, if there is room. False if a stray write has changed the list.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`]; [`Error::System`] if there is no memory for the list.
    pub(crate) fn note_on_commit(&self, deferred: &mut Option<Deferred>) -> Result<bool, Error> {
        let (tag, is_first) = (self.tag(), !self.has(ON_COMMIT));
        self.lists(|lists| {
            let list = &mut lists.on_commit;
            if is_first {
                list.0.begin(tag, ON_COMMIT_MAX * size_of::<Entry>())?;
            } else if !list.0.is_of(tag) {
                return Ok(false);
            }
            if list.0.count() >= ON_COMMIT_MAX {
                return Err(Error::Limit(
                    "262144 functions to be called after the commit",
                ));
            }
            if let Some(deferred) = deferred.take() {
                list.push(deferred);
            }
            Ok(true)
        })
        .inspect(|_| self.set(ON_COMMIT))
    }

    /// Whether the list is as the request has made it.
    pub(crate) fn is_on_commit_whole(&self) -> bool {
        let (tag, is_used) = (self.tag(), self.has(ON_COMMIT));
        self.lists(|lists| {
            let list = &lists.on_commit;
            if !is_used {
                return list.0.tag() != tag;
            }
            list.0.is_of(tag) && (0..list.0.count()).all(|place| list.has(place))
        })
    }

    /// What was registered so far is committed.
    pub(crate) fn set_on_commit_due(&self) {
        let tag = self.tag();
        self.lists(|lists| {
            let list = &mut lists.on_commit.0;
            if list.is_of(tag) {
                list.set(tag, list.count(), list.count());
            }
        });
    }

    /// The list of the request, which is over or about to be; the state may be that of another by the time that it is worked off.
    #[inline]
    pub(crate) fn take_on_commit(&self) -> Option<OnCommit> {
        self.has(ON_COMMIT).then(|| self.take_list())
    }

    #[cold]
    #[inline(never)]
    fn take_list(&self) -> OnCommit {
        self.lists(|lists| std::mem::replace(&mut lists.on_commit, OnCommit::new()))
    }

    /// Keeps the list's memory for the next request.
    pub(crate) fn keep_on_commit(&self, mut list: OnCommit) {
        if !list.0.is_whole() {
            list.0.abandon();
            return;
        }
        if let Some(memory) = list.0.region()
            && list.0.count() * size_of::<Entry>() > KEPT
        {
            memory.shrink(KEPT);
        }
        list.0.set(0, 0, 0);
        self.lists(|lists| {
            if lists.on_commit.0.region().is_none() {
                lists.on_commit = list;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::MockBackend;
    use crate::{App, Domain};
    use crate::{Kind, RunError, thread};
    use std::ptr;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, OnceLock};

    /// The tests' app: a process can have few.
    fn app() -> &'static App {
        static APP: OnceLock<&App> = OnceLock::new();
        APP.get_or_init(|| MockBackend::app("lists", |hooks| hooks.protects = true))
    }

    /// Runs a request that registers two functions, and then damages the list; returns how many were called.
    fn run(
        domain: &'static Domain,
        damage: fn(&mut OnCommit),
    ) -> (Result<(), RunError<Error>>, u32) {
        let called = Arc::new(AtomicU32::new(0));
        let outcome = domain.run(|request| {
            for _ in 0..2 {
                let called = Arc::clone(&called);
                request.on_commit(move || {
                    called.fetch_add(1, Ordering::SeqCst);
                })?;
            }
            let state = thread::current().unwrap().state();
            state.lists(|lists| damage(&mut lists.on_commit));
            Ok(())
        });
        let count = called.load(Ordering::SeqCst);
        // The next one has a list of its own.
        let next = Arc::clone(&called);
        let register = |request: &crate::Request| {
            request.on_commit(move || {
                next.fetch_add(10, Ordering::SeqCst);
            })
        };
        domain.run(register).unwrap();
        assert_eq!(called.load(Ordering::SeqCst), count + 10);
        (outcome, count)
    }

    #[test]
    fn damaged_list_of_what_comes_after_the_commit_fails_the_request() {
        let damages: [fn(&mut OnCommit); 7] = [
            |list| list.0.damage(|_, count, _| *count = 1),
            |list| list.0.damage(|_, count, _| *count = 3),
            |list| list.0.damage(|_, count, _| *count = 0),
            |list| list.0.damage(|tag, _, _| *tag += 1),
            |list| list.0.damage(|_, _, due| *due = 1),
            |list| {
                // SAFETY: the second entry; the damage is the test.
                unsafe { (*list.entry(1).unwrap()).words[0] ^= 1 << 20 };
            },
            |list| {
                // SAFETY: as above. Entries that change places are called in another order.
                unsafe { ptr::swap(list.entry(0).unwrap(), list.entry(1).unwrap()) };
            },
        ];
        let domain = app().domain("1").unwrap();
        for (number, damage) in damages.into_iter().enumerate() {
            let (outcome, called) = run(domain, damage);
            let Err(RunError::Failed(failure)) = outcome else {
                panic!("{number}: {outcome:?}");
            };
            assert_eq!((failure.kind, called), (Kind::Memory, 0), "{number}");
        }
        let (outcome, called) = run(domain, |_| ());
        outcome.unwrap();
        assert_eq!(called, 2);
    }

    #[test]
    fn committed_function_that_is_lost_is_counted() {
        let domain = app().domain("2").unwrap();
        for gives_up in [false, true] {
            let outcome: Result<(), RunError<Error>> = domain.run(|request| {
                request.on_commit(|| unreachable!())?;
                request.commit(false)?;
                let state = thread::current().unwrap().state();
                state.lists(|lists| {
                    // SAFETY: the first entry; the damage is the test.
                    unsafe { (*lists.on_commit.entry(0).unwrap()).words[0] ^= 1 << 20 };
                });
                if gives_up {
                    Err(Error::NotHeld)
                } else {
                    Ok(())
                }
            });
            let Err(RunError::Failed(failure)) = outcome else {
                panic!("{outcome:?}");
            };
            assert_eq!((failure.kind, failure.defers_failed), (Kind::Memory, 1));
        }
    }

    #[test]
    fn list_has_a_limit() {
        let domain = app().domain("3").unwrap();
        let outcome = domain.run(|request| {
            while request.on_commit(|| ()).is_ok() {}
            request.on_commit(|| ())
        });
        assert!(matches!(outcome, Err(RunError::GivenUp(Error::Limit(_)))));
        assert!(thread::of(app()).unwrap().is_at_rest());
    }
}
