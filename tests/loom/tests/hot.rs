//! Hot domains: the claim, by which a request and the driver agree on what is resident (`guest-lib/src/run/hot.rs`,
//! `guest-kmod/resident.c`).

use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use vmsrs_loom::check;

/// The driver's mark in a claim.
const HERE: u64 = u64::MAX;

/// One domain, which has two requests one after the other while the driver takes its resident pages back, and may make
/// them resident again.
struct Domain {
    /// The domain's lock word.
    word: AtomicU64,
    /// Its entry in the list of hot domains.
    entry: AtomicU32,
    claim: AtomicU64,
    /// The driver's lock of the domain: whether its pages are mapped under the key.
    resident: Mutex<bool>,
    /// The same, as a write in the program finds it.
    mapped: AtomicBool,
}

impl Domain {
    fn new() -> Self {
        Self {
            word: AtomicU64::new(0),
            entry: AtomicU32::new(1),
            claim: AtomicU64::new(0),
            resident: Mutex::new(true),
            mapped: AtomicBool::new(true),
        }
    }

    fn claim_from(&self, from: u64, to: u64) -> bool {
        let changed = self
            .claim
            .compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst);
        changed.is_ok()
    }

    /// `take_back`, under the domain's lock and with the claim.
    fn take_back(&self, resident: &mut bool) {
        self.mapped.store(false, Ordering::SeqCst);
        self.entry.store(0, Ordering::SeqCst);
        *resident = false;
        self.claim.store(0, Ordering::SeqCst);
    }

    /// Whoever wants the key: `free_key`.
    fn steal(&self) {
        let mut resident = self.resident.lock().unwrap();
        if *resident && self.claim_from(0, HERE) {
            self.take_back(&mut resident);
        }
    }

    /// `vmsrs_resident_cool` by the request that has the lock.
    fn cool(&self, tag: u64) -> bool {
        let mut resident = self.resident.lock().unwrap();
        if !*resident {
            return true;
        }
        let claim = self.claim.load(Ordering::SeqCst);
        if claim == tag || self.claim_from(0, HERE) {
            self.take_back(&mut resident);
            return true;
        }
        false
    }

    /// `run::hot::enter`: whether the request is inside; `None` if it fails.
    fn enter(&self, tag: u64) -> Option<bool> {
        if self.entry.load(Ordering::SeqCst) == 0 {
            return Some(false);
        }
        if self.claim_from(0, tag) {
            if self.entry.load(Ordering::SeqCst) != 0 {
                return Some(true);
            }
            self.claim.store(0, Ordering::SeqCst);
        }
        self.cool(tag).then_some(false)
    }

    /// A request. Returns whether it was inside, or `None` if it has failed.
    fn request(&self, tag: u64) -> Option<bool> {
        while self
            .word
            .compare_exchange(0, tag, Ordering::SeqCst, Ordering::SeqCst)
            .is_err()
        {
            thread::yield_now();
        }
        let inside = self.enter(tag);
        if let Some(inside) = inside {
            // What it may write is mapped for it: a request that is not inside would get a signal at a resident page.
            assert_eq!(self.mapped.load(Ordering::SeqCst), inside);
        }
        if inside == Some(true) {
            // vmsrs_resident_commit()
            let resident = self.resident.lock().unwrap();
            assert!(*resident && self.claim.load(Ordering::SeqCst) == tag);
            self.claim.store(0, Ordering::SeqCst);
        }
        self.word.store(0, Ordering::SeqCst);
        inside
    }
}

#[test]
fn pages_are_resident_for_the_whole_time_of_a_request_inside_and_for_no_other() {
    check(3, || {
        let domain = Arc::new(Domain::new());
        let driver = {
            let domain = domain.clone();
            thread::spawn(move || domain.steal())
        };
        let other = {
            let domain = domain.clone();
            thread::spawn(move || domain.request(7))
        };
        // None fails where no stray write has changed a word.
        assert!(domain.request(5).is_some());
        assert!(other.join().unwrap().is_some());
        driver.join().unwrap();
    });
}

#[test]
fn two_requests_are_never_inside_though_a_stray_write_has_cleared_the_lock_word() {
    check(3, || {
        let domain = Arc::new(Domain::new());
        let second = {
            let domain = domain.clone();
            thread::spawn(move || {
                // It takes the lock that the first one has.
                domain.enter(7)
            })
        };
        let first = domain.enter(5);
        let second = second.join().unwrap();
        assert!(!(first == Some(true) && second == Some(true)));
    });
}
