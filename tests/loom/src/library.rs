//! A thread of a program, with `guest-lib/src/run/lock.rs` and the system calls of `device.rs`.

use crate::driver::{Driver, Errno, Thread};
use crate::held::{self, HeldList};
use crate::life::Life;
use crate::sync::Ordering;
use crate::word::{self, Released};
use loom::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::Arc;
use vmsrs_protocol::shared::HELD_MAX;

/// A thread's control block (`struct vmsrs_thread_control`).
///
/// The library's volatile stores to the list are relaxed ones here, which is weaker than what the CPU
/// does: the driver orders what it reads there by locks and by the end of the thread alone. The tag
/// is read at any time; there, x86's order counts, in which a store is a release.
#[derive(Default)]
pub struct Control {
    pub(crate) tag: AtomicU64,
    pub(crate) held_count: AtomicU32,
    pub(crate) held: [AtomicU32; HELD_KEPT],
}

/// Entries of the list that have an atomic of their own; the others cost loom time alone.
const HELD_KEPT: usize = 4;

/// The library in one thread.
pub struct Library {
    driver: Arc<Driver>,
    thread: Arc<Thread>,
    life: Life,
}

impl HeldList for Library {
    fn count(&self) -> u32 {
        self.thread.control.held_count.load(Ordering::Relaxed)
    }

    fn set_count(&self, count: u32) {
        self.life.step();
        self.thread
            .control
            .held_count
            .store(count, Ordering::Relaxed);
    }

    fn entry(&self, place: usize) -> u32 {
        self.thread.control.held[place].load(Ordering::Relaxed)
    }

    fn set_entry(&self, place: usize, domain: u32) {
        self.life.step();
        self.thread.control.held[place].store(domain, Ordering::Relaxed);
    }
}

impl Library {
    /// A registered thread that begins its request with `tag`.
    pub fn begin(driver: &Arc<Driver>, thread: &Arc<Thread>, tag: u64, life: Life) -> Self {
        thread.control.tag.store(tag, Ordering::Release);
        Self {
            driver: driver.clone(),
            thread: thread.clone(),
            life,
        }
    }

    fn tag(&self) -> u64 {
        self.thread.control.tag.load(Ordering::Relaxed)
    }

    /// `lock::lock`.
    ///
    /// # Errors
    ///
    /// As the driver's `vmsrs_lock_wait`.
    pub fn lock(&self, domain: u32) -> Result<(), Errno> {
        assert!(held::len(self) < HELD_KEPT.min(HELD_MAX));
        held::push(self, domain);
        self.life.step();
        if word::try_lock(self.driver.word(domain), self.tag()) {
            return Ok(());
        }
        self.life.step();
        let outcome = self.driver.lock_wait(&self.thread, self.tag(), domain);
        if outcome.is_err() {
            held::remove(self, domain);
        }
        outcome
    }

    /// `lock::unlock`.
    pub fn unlock(&self, domain: u32) {
        self.life.step();
        // As `lock::release_quietly`; then the long way.
        let (word, tag) = (self.driver.word(domain), self.tag());
        if !word::release_quietly(word, tag) && word::release(word, tag) == Released::WithWaiters {
            self.life.step();
            self.driver.lock_wake(domain);
        }
        held::remove(self, domain);
    }

    /// Sets the request aside: the driver knows before the thread lets go of it. Gives the tag.
    pub fn suspend(&self) -> u64 {
        let tag = self.tag();
        self.driver.suspend(tag);
        self.thread.control.tag.store(0, Ordering::Release);
        self.set_count(0);
        tag
    }

    /// Takes a request with one domain up again: the thread carries it before the driver forgets that
    /// it was set aside.
    pub fn resume(&self, tag: u64, domain: u32) {
        held::push(self, domain);
        self.thread.control.tag.store(tag, Ordering::Release);
        self.driver.resume(tag);
    }

    /// Gives a request up that was set aside with one domain; nobody carries its tag.
    pub fn abandon(&self, tag: u64, domain: u32) {
        self.driver.abandon(tag, domain);
    }

    /// `Thread::end`: the request is over, and nothing is held.
    pub fn end(&self) {
        self.life.step();
        self.thread.control.tag.store(0, Ordering::Release);
        self.set_count(0);
    }

    /// Runs what the thread does; its death is the driver's to clean up after.
    pub fn run(&self, program: impl FnOnce(&Self)) {
        if self.life.run(|| program(self)).is_err() {
            self.driver.thread_end(&self.thread);
        }
    }

    /// Runs what the thread does, and leaves everything as its death has left it.
    pub fn run_watched(&self, program: impl FnOnce(&Self)) {
        // Whether it died makes no difference to who looks.
        let _ = self.life.run(|| program(self));
    }

    /// The domains on the list, as the driver would read them now.
    pub fn held(&self) -> Vec<u32> {
        self.thread.held()
    }
}
