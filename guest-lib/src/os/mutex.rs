//! A lock word that threads of the process sleep on (futex(2)), with its owner.

use super::futex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const FREE: u32 = 0;
const TAKEN: u32 = 1;
/// Taken, and others may sleep.
const AWAITED: u32 = 2;

/// How long a thread sleeps before it looks again.
const SLICE: Duration = Duration::from_millis(100);

/// See the module's description. All zero is free.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct RawMutex {
    word: AtomicU32,
    /// Kernel's number of the thread that has it, or 0.
    owner: AtomicU32,
}

impl RawMutex {
    pub(crate) const fn new() -> Self {
        Self {
            word: AtomicU32::new(FREE),
            owner: AtomicU32::new(0),
        }
    }

    pub(crate) fn is_owned_by(&self, thread: u32) -> bool {
        self.owner.load(Ordering::Relaxed) == thread
    }

    /// Takes it for a thread, if it is free.
    pub(crate) fn try_take(&self, thread: u32) -> bool {
        let taken = self
            .word
            .compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed);
        self.note_owner(taken.is_ok(), thread)
    }

    /// The same; otherwise its release wakes those that sleep.
    pub(crate) fn take_or_await(&self, thread: u32) -> bool {
        let taken = self.word.swap(AWAITED, Ordering::Acquire) == FREE;
        self.note_owner(taken, thread)
    }

    fn note_owner(&self, taken: bool, thread: u32) -> bool {
        if taken {
            self.owner.store(thread, Ordering::Relaxed);
        }
        taken
    }

    /// Sleeps until it is released, a signal's handler has run, or for no reason.
    pub(crate) fn sleep(&self) {
        // An error counts as a wake-up.
        let _ = futex::wait(&self.word, AWAITED, SLICE);
    }

    /// Releases it; the thread has it.
    pub(crate) fn release(&self) {
        self.owner.store(0, Ordering::Relaxed);
        if self.word.swap(FREE, Ordering::Release) == AWAITED {
            futex::wake_all(&self.word);
        }
    }
}
