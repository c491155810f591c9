//! A request that starts a thread for a piece of its work, with `guest-lib/src/state/slots.rs` and what
//! `fan_out.rs`, `members.rs` and the landing do with it.

use crate::protected::Protected;
use crate::slots::{Reservation, Slots};

/// Number of the thread that starts the pieces.
pub const STARTER: u32 = 1;

/// A request, and what a piece of its work borrows from the frames of the thread that started it.
pub struct FanOut {
    slots: Slots<2>,
    borrowed: Protected,
}

/// What a piece gets of the thread that starts it.
#[derive(Clone, Copy)]
pub struct Start(Reservation);

impl Default for FanOut {
    fn default() -> Self {
        Self {
            slots: Slots::new(),
            borrowed: Protected::default(),
        }
    }
}

impl FanOut {
    /// `Ticket::reserve`.
    ///
    /// # Panics
    ///
    /// When there is no slot left.
    pub fn reserve(&self) -> Start {
        Start(self.slots.reserve(STARTER.into()).unwrap())
    }

    /// `Piece::run` on the thread with that number; whether the piece was run.
    pub fn run(&self, start: Start, number: u32) -> bool {
        let Some(slot) = self.slots.adopt(start.0, number.into()) else {
            return false;
        };
        self.borrowed.touch();
        self.slots.leave(slot);
        true
    }

    /// `Members::cancel`: the thread could not be started.
    pub fn cancel(&self, start: Start) {
        self.slots.cancel(start.0);
    }

    /// The starter's landing: takes back what nobody has adopted (whether there was something), waits for
    /// the others, and uses its request stack again, for defers or the next request. What runs before the
    /// wait is on other stacks, the trial of the C library's heap among it, and has no part in the model.
    pub fn land(&self) -> bool {
        let taken_back = self.slots.take_back(STARTER);
        while self.slots.awaits(STARTER) {
            loom::thread::yield_now();
        }
        self.borrowed.touch();
        taken_back
    }

    /// The owner's wait for its members, after the starter has ended without leaving. Whether it has freed
    /// the slot.
    pub fn sweep(&self) -> bool {
        let swept = self.slots.sweep(|identity| identity != u64::from(STARTER));
        while !self.slots.is_empty() {
            loom::thread::yield_now();
        }
        self.borrowed.touch();
        swept
    }

    /// How often the borrowed data was touched; nobody works for the request any more.
    pub fn count(&self) -> u64 {
        assert!(self.slots.is_empty() && self.slots.lost(|_| false).is_none());
        self.borrowed.count()
    }

    /// Takes a slot as a thread that joins by a ticket, and leaves again.
    ///
    /// # Panics
    ///
    /// When there is no slot left.
    pub fn join(&self, number: u32) {
        let slot = self.slots.enter(number.into()).unwrap();
        self.slots.leave(slot);
    }
}
