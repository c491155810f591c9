//! `guest-kmod/deadlock.c`: who waits for whom. A request has one thread here, so it has one sleeper
//! at most.

use super::lock::Driver;
use loom::sync::atomic::Ordering;
use vmsrs_protocol::shared::LOCK_TAG;

/// `struct vmsrs_wait` of a registered sleeper.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Wait {
    tag: u64,
    domain: u32,
}

impl Driver {
    /// `closes_cycle`. `waits_lock` is held.
    fn closes_cycle(&self, waits: &[Wait], first: Wait) -> bool {
        let mut wait = first;
        // Each sleeper is followed once.
        for _ in 0..waits.len() {
            let holder = self.word(wait.domain).load(Ordering::Relaxed) & LOCK_TAG;
            if holder == first.tag {
                return true;
            }
            match waits.iter().find(|next| next.tag == holder) {
                Some(next) => wait = *next,
                None => return false,
            }
        }
        false
    }

    /// `vmsrs_wait_enter`. False if it would close a cycle.
    pub(super) fn wait_enter(&self, tag: u64, domain: u32) -> bool {
        let mut waits = self.waits();
        let wait = Wait { tag, domain };
        if !waits.contains(&wait) {
            waits.push(wait);
        }
        let cycle = self.closes_cycle(&waits, wait);
        if cycle {
            waits.retain(|other| *other != wait);
        }
        !cycle
    }

    /// `vmsrs_wait_leave`.
    pub(super) fn wait_leave(&self, tag: u64, domain: u32) {
        let wait = Wait { tag, domain };
        self.waits().retain(|other| *other != wait);
    }
}
