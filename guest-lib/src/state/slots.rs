//! Slots for the threads that have joined a request, and for those that are about to start.
//!
//! No lock: a thread can be cut short or end anywhere. `tests/loom` builds this module too.
//!
//! A slot is free (0), has a thread (its identity, and the number of the thread that started it), or is *reserved*:
//! by a thread of the request, for one that it is about to start. The value of a reserved slot is unique,
//! so it can be taken back: either the thread that was started or the one that takes it back wins, and a
//! thread that is too late finds out, even if the slot has been reserved again since.

use crate::sync::{AtomicU64, Ordering};

/// Marks a reserved slot. Below it: a count, and the identity of the thread that reserved it.
const RESERVED: u64 = 1 << 63;

/// Bits of a thread's identity: its number, and above it what tells threads of the same number apart.
pub(crate) const IDENTITY_BITS: u32 = 41;

/// Bits of a thread's number: Linux has numbers below 2^22.
pub(crate) const NUMBER_BITS: u32 = 22;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Slots<const COUNT: usize> {
    places: [AtomicU64; COUNT],
    /// Slots from here on were never taken.
    used: AtomicU64,
    /// Counts reservations.
    reservations: AtomicU64,
}

/// A slot that is kept for a thread that is about to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reservation {
    slot: usize,
    says: u64,
}

/// The thread in a slot's value: the one that has it, or the one that reserved it.
fn identity(says: u64) -> u64 {
    says & ((1 << IDENTITY_BITS) - 1)
}

/// The thread ID in an identity, or in a slot's value.
fn number(identity: u64) -> u64 {
    identity & ((1 << NUMBER_BITS) - 1)
}

impl<const COUNT: usize> Slots<COUNT> {
    pub(crate) fn new() -> Self {
        Self {
            places: std::array::from_fn(|_| AtomicU64::new(0)),
            used: AtomicU64::new(0),
            reservations: AtomicU64::new(0),
        }
    }

    /// Takes a slot for that thread; `None` when there is none.
    pub(crate) fn enter(&self, identity: u64) -> Option<usize> {
        self.take(identity)
    }

    /// Keeps a slot for a thread that will [`Slots::adopt`] it. `identity` is that of the calling thread.
    pub(crate) fn reserve(&self, identity: u64) -> Option<Reservation> {
        // It repeats itself after 2^22: by then the thread that was about to start has started.
        let count = self.reservations.fetch_add(1, Ordering::SeqCst);
        let says = RESERVED | count << IDENTITY_BITS | identity;
        let slot = self.take(says)?;
        Some(Reservation { slot, says })
    }

    /// Makes a reserved slot that of this thread. `None` if it was taken back: the
    /// request does not wait for this thread, and may be over.
    pub(crate) fn adopt(&self, reservation: Reservation, identity: u64) -> Option<usize> {
        let says = number(reservation.says) << IDENTITY_BITS | identity;
        self.change(reservation.slot, reservation.says, says)
            .then_some(reservation.slot)
    }

    /// Takes one reserved slot back; false if it was adopted, or taken back before.
    pub(crate) fn cancel(&self, reservation: Reservation) -> bool {
        self.change(reservation.slot, reservation.says, 0)
    }

    /// Takes back what the thread with that number has reserved and no thread has adopted yet. False if
    /// there was none.
    pub(crate) fn take_back(&self, reserver: u32) -> bool {
        let mut found = false;
        for (slot, says) in self.taken() {
            found |= says & RESERVED != 0
                && number(says) == u64::from(reserver)
                && self.change(slot, says, 0);
        }
        found
    }

    /// Whether the thread with that number has reserved a slot, or a thread has one that it has started.
    pub(crate) fn awaits(&self, starter: u32) -> bool {
        let starter_in = |says| match says & RESERVED {
            0 => says >> IDENTITY_BITS,
            _ => number(says),
        };
        let mut taken = self.taken();
        taken.any(|(_, says)| starter_in(says) == u64::from(starter))
    }

    /// Frees the slot of a thread that does nothing for the request any more.
    pub(crate) fn leave(&self, slot: usize) {
        self.places[slot].store(0, Ordering::SeqCst);
    }

    /// Whether all slots are free.
    pub(crate) fn is_empty(&self) -> bool {
        self.taken().next().is_none()
    }

    /// A slot whose thread is gone, or that was reserved by a thread that is gone.
    pub(crate) fn lost(&self, lives: impl Fn(u64) -> bool) -> Option<(usize, u64)> {
        self.taken().find(|&(_, says)| !lives(identity(says)))
    }

    /// Frees the slots of threads that are gone; false if there was none.
    pub(crate) fn sweep(&self, lives: impl Fn(u64) -> bool) -> bool {
        let mut found = false;
        while let Some((slot, says)) = self.lost(&lives) {
            // Otherwise a live thread has adopted it.
            found |= self.change(slot, says, 0);
        }
        found
    }

    fn take(&self, says: u64) -> Option<usize> {
        for (slot, place) in self.places.iter().enumerate() {
            if place.load(Ordering::SeqCst) != 0 {
                continue;
            }
            // The bound goes up before the slot is taken: a later look finds it, even if this thread ends.
            self.used.fetch_max(slot as u64 + 1, Ordering::SeqCst);
            if self.change(slot, 0, says) {
                return Some(slot);
            }
        }
        None
    }

    fn change(&self, slot: usize, from: u64, to: u64) -> bool {
        let changed =
            self.places[slot].compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed);
        changed.is_ok()
    }

    /// Slots that are not free, and their values.
    fn taken(&self) -> impl Iterator<Item = (usize, u64)> {
        let used = self.used.load(Ordering::SeqCst) as usize;
        let says = |slot: &AtomicU64| slot.load(Ordering::SeqCst);
        let slots = self.places[..used].iter().map(says).enumerate();
        slots.filter(|&(_, says)| says != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_slot_goes_to_the_first_claimant() {
        let slots = Slots::<2>::new();
        let reservation = slots.reserve(7).unwrap();
        assert!(slots.awaits(7) && !slots.awaits(8) && !slots.is_empty());
        assert_eq!(slots.adopt(reservation, 8), Some(0));
        assert!(!slots.take_back(7), "it is adopted");
        assert!(!slots.cancel(reservation));
        assert!(slots.awaits(7) && !slots.awaits(8));
        slots.leave(0);
        assert!(!slots.awaits(7));
        assert!(slots.is_empty());

        let reservation = slots.reserve(7).unwrap();
        assert!(!slots.take_back(8), "it is another thread's");
        assert!(slots.take_back(7));
        assert!(slots.is_empty());
        assert_eq!(slots.adopt(reservation, 8), None);
        let again = slots.reserve(7).unwrap();
        assert_eq!(again.slot, reservation.slot);
        assert_eq!(slots.adopt(reservation, 8), None, "of another one");
        assert!(slots.cancel(again));
    }

    #[test]
    fn slots_of_a_dead_thread_are_freed() {
        let slots = Slots::<4>::new();
        slots.enter(1).unwrap();
        slots.reserve(1).unwrap();
        let theirs = slots.enter(2).unwrap();
        assert!(slots.sweep(|number| number != 1));
        assert!(!slots.sweep(|number| number != 1));
        assert_eq!(slots.lost(|number| number == 2), None);
        slots.leave(theirs);
        assert!(slots.is_empty());
    }
}
