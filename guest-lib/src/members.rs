//! The threads that have joined a request.
//!
//! A slot for each, with the thread's number. No lock: a thread can be cut short or end anywhere.

use crate::futex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Most threads that can have joined one request at a time.
pub(crate) const MEMBERS_MAX: usize = 256;

/// In a slot that is kept for a thread that is about to start.
const RESERVED: u32 = u32::MAX;

/// How often a waiter looks for members that have ended without leaving.
const PATIENCE: Duration = Duration::from_millis(100);

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Members {
    slots: [AtomicU32; MEMBERS_MAX],
    /// No slot from here on was ever used.
    used: AtomicU32,
    /// Counts departures; waiters sleep on it.
    departures: AtomicU32,
}

/// The calling thread's number. Async-signal-safe.
pub(crate) fn thread_number() -> u32 {
    // SAFETY: no conditions.
    unsafe { libc::gettid() }.cast_unsigned()
}

/// Whether a thread of this process has that number.
fn lives(number: u32) -> bool {
    // SAFETY: signal 0 only asks.
    let answer = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), number, 0) };
    answer == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

impl Members {
    pub(crate) const fn new() -> Self {
        Self {
            slots: [const { AtomicU32::new(0) }; MEMBERS_MAX],
            used: AtomicU32::new(0),
            departures: AtomicU32::new(0),
        }
    }

    /// Takes a slot for the calling thread; `None` when there is none.
    pub(crate) fn enter(&self) -> Option<usize> {
        self.take(thread_number())
    }

    /// Keeps a slot for a thread that will [`Members::adopt`] it.
    pub(crate) fn reserve(&self) -> Option<usize> {
        self.take(RESERVED)
    }

    /// Makes a reserved slot the calling thread's.
    pub(crate) fn adopt(&self, slot: usize) {
        self.slots[slot].store(thread_number(), Ordering::SeqCst);
    }

    fn take(&self, number: u32) -> Option<usize> {
        let free = |slot: &AtomicU32| {
            slot.compare_exchange(0, number, Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()
        };
        let slot = self.slots.iter().position(free)?;
        self.used.fetch_max(slot as u32 + 1, Ordering::SeqCst);
        Some(slot)
    }

    /// Gives the slot back; the thread does nothing for the request any more.
    pub(crate) fn leave(&self, slot: usize) {
        self.slots[slot].store(0, Ordering::SeqCst);
        self.departures.fetch_add(1, Ordering::SeqCst);
        futex::wake_all(&self.departures);
    }

    /// Whether nobody has joined.
    pub(crate) fn is_empty(&self) -> bool {
        let used = self.used.load(Ordering::SeqCst) as usize;
        self.slots[..used]
            .iter()
            .all(|slot| slot.load(Ordering::SeqCst) == 0)
    }

    /// Waits until nobody has joined. A thread that has ended without leaving does not count; false if
    /// there was one.
    pub(crate) fn wait(&self) -> bool {
        let mut all_left = true;
        loop {
            let departures = self.departures.load(Ordering::SeqCst);
            if self.is_empty() {
                return all_left;
            }
            // An error is as good as a wake-up.
            let _ = futex::wait(&self.departures, departures, PATIENCE);
            all_left &= !self.sweep();
        }
    }

    /// Clears the slots of threads that are gone; true if there were any.
    fn sweep(&self) -> bool {
        let mut found = false;
        let used = self.used.load(Ordering::SeqCst) as usize;
        for slot in &self.slots[..used] {
            let number = slot.load(Ordering::SeqCst);
            if number != 0 && number != RESERVED && !lives(number) {
                // Nobody else changes the slot of a thread that is gone.
                slot.store(0, Ordering::SeqCst);
                found = true;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn there_is_a_slot_for_each_member_until_all_are_taken() {
        let members = Members::new();
        assert!(members.is_empty());
        for slot in 0..MEMBERS_MAX {
            assert_eq!(members.enter(), Some(slot));
        }
        assert_eq!(members.enter(), None);
        members.leave(7);
        assert_eq!(members.reserve(), Some(7));
        members.adopt(7);
        for slot in 0..MEMBERS_MAX {
            assert!(!members.is_empty());
            members.leave(slot);
        }
        assert!(members.wait());
        assert!(members.is_empty());
    }

    #[test]
    fn a_member_that_ends_without_leaving_is_not_waited_for() {
        let members = Arc::new(Members::new());
        let theirs = Arc::clone(&members);
        std::thread::spawn(move || theirs.enter()).join().unwrap();
        assert!(!members.wait());
        assert!(members.is_empty());
    }
}
