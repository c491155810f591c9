//! The threads that have joined a request, and waiting for them.

use super::slots::{IDENTITY_BITS, NUMBER_BITS, Reservation, Slots};
use crate::os::clock::now;
use crate::os::futex;
use crate::os::identity::{self, identity, is_used, lives, thread_number};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Most threads that can have joined one request at a time.
pub(crate) const MEMBERS_MAX: usize = 256;

const _: () = assert!(
    IDENTITY_BITS == identity::BITS && NUMBER_BITS == identity::NUMBER_BITS,
    "a slot holds an identity"
);

/// How often a waiter looks for members that have ended without leaving.
const PATIENCE: Duration = Duration::from_millis(100);

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Members {
    slots: Slots<MEMBERS_MAX>,
    /// Counts departures; waiters sleep on it.
    departures: AtomicU32,
    /// `CLOCK_MONOTONIC` nanoseconds of the last check that the threads with the members' IDs are the
    /// members.
    last_check: AtomicU64,
}

impl Members {
    pub(crate) fn new() -> Self {
        Self {
            slots: Slots::new(),
            departures: AtomicU32::new(0),
            last_check: AtomicU64::new(0),
        }
    }

    /// Takes a slot for the calling thread; `None` when there is none.
    pub(crate) fn enter(&self) -> Option<usize> {
        self.slots.enter(identity())
    }

    /// Keeps a slot for a thread that the calling one is about to start, and that will
    /// [`Members::adopt`] it.
    pub(crate) fn reserve(&self) -> Option<Reservation> {
        self.slots.reserve(identity())
    }

    /// Makes a reserved slot the calling thread's. `None` if it was taken back: the request may be over,
    /// and what was borrowed for the thread may be gone.
    pub(crate) fn adopt(&self, reservation: Reservation) -> Option<usize> {
        self.slots.adopt(reservation, identity())
    }

    /// Gives a reserved slot back whose thread was not started.
    pub(crate) fn cancel(&self, reservation: Reservation) {
        if self.slots.cancel(reservation) {
            self.notify();
        }
    }

    /// Takes back what the calling thread, whose number is `me`, has reserved: it was cut short, perhaps before it has
    /// started the threads. Those that have not adopted their slots yet never will.
    pub(crate) fn take_back(&self, me: u32) {
        if self.slots.take_back(me) {
            self.notify();
        }
    }

    /// Gives the slot back; the thread does nothing for the request any more.
    pub(crate) fn leave(&self, slot: usize) {
        self.slots.leave(slot);
        self.notify();
    }

    fn notify(&self) {
        self.departures.fetch_add(1, Ordering::SeqCst);
        futex::wake_all(&self.departures);
    }

    /// Whether no thread has joined.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether a thread has ended without leaving. It has files open meanwhile: the caller must not be
    /// cut short.
    pub(crate) fn has_lost(&self) -> bool {
        self.slots.lost(self.alive()).is_some()
    }

    /// Frees the slots of threads that have ended without leaving; false if there was none. As
    /// [`Members::has_lost`], the caller must not be cut short.
    pub(crate) fn sweep(&self) -> bool {
        self.slots.sweep(self.alive())
    }

    /// How to check whether a member lives. Once in [`PATIENCE`] more than the thread ID is checked: that
    /// costs more, and IDs are rarely reused so soon.
    fn alive(&self) -> fn(u64) -> bool {
        let (now, last) = (now(), self.last_check.load(Ordering::Relaxed));
        let due = u128::from(now.saturating_sub(last)) >= PATIENCE.as_nanos();
        let mine = due
            && self
                .last_check
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if mine { lives } else { is_used }
    }

    /// Waits until all members have left. A thread that has ended without leaving does not count; false if
    /// there was one. `sweep` is [`Members::sweep`], protected from being cut short.
    pub(crate) fn wait(&self, sweep: impl Fn(&Self) -> bool) -> bool {
        self.wait_until(sweep, || self.is_empty())
    }

    /// Waits until the threads that the calling one has started for the request, or is about to, have left it: they
    /// borrow from its stack. `sweep` as in [`Members::wait`].
    pub(crate) fn wait_for_started(&self, sweep: impl Fn(&Self) -> bool) {
        self.wait_until(sweep, || !self.slots.awaits(thread_number()));
    }

    fn wait_until(&self, sweep: impl Fn(&Self) -> bool, done: impl Fn() -> bool) -> bool {
        let mut all_left = true;
        loop {
            let departures = self.departures.load(Ordering::SeqCst);
            if done() {
                return all_left;
            }
            // An error counts as a wake-up.
            let _ = futex::wait(&self.departures, departures, PATIENCE);
            all_left &= !sweep(self);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn each_member_has_a_slot_until_all_are_taken() {
        let members = Members::new();
        assert!(members.is_empty());
        for slot in 0..MEMBERS_MAX {
            assert_eq!(members.enter(), Some(slot));
        }
        assert_eq!(members.enter(), None);
        members.leave(7);
        let reservation = members.reserve().unwrap();
        assert_eq!(members.adopt(reservation), Some(7));
        for slot in 0..MEMBERS_MAX {
            assert!(!members.is_empty());
            members.leave(slot);
        }
        assert!(members.wait(Members::sweep));
        assert!(members.is_empty());
    }

    #[test]
    fn lost_member_is_not_waited_for() {
        let members = Arc::new(Members::new());
        let theirs = Arc::clone(&members);
        std::thread::spawn(move || (theirs.enter(), theirs.reserve()))
            .join()
            .unwrap();
        assert!(members.has_lost());
        assert!(!members.wait(Members::sweep));
        assert!(members.is_empty() && !members.has_lost());
    }

    #[test]
    fn lost_member_is_not_the_thread_with_its_id_now() {
        let members = Members::new();
        // The number is in use, by the thread that asks.
        let before = identity() ^ (1 << (IDENTITY_BITS - 1));
        members.slots.enter(before).unwrap();
        assert!(members.has_lost());
        assert!(!members.wait(Members::sweep));
        assert!(members.is_empty());
        let slot = members.enter().unwrap();
        members.last_check.store(0, Ordering::Relaxed);
        assert!(!members.has_lost());
        members.leave(slot);
    }
}
