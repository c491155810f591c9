//! `guest-kmod/thread.c`: registered threads.

use crate::library::Control;
use loom::sync::Condvar;
use loom::sync::atomic::Ordering;
use std::sync::Arc;

/// `struct vmsrs_thread`, and as much of `struct task_struct` as a sleep needs.
pub struct Thread {
    pub(crate) number: usize,
    pub(crate) control: Control,
    /// A wake-up of the scheduler.
    pub(crate) scheduled: Condvar,
}

impl Thread {
    /// `vmsrs_thread_register`; `number` is its place among the sleepers.
    pub fn register(number: usize) -> Arc<Self> {
        Arc::new(Self {
            number,
            control: Control::default(),
            scheduled: Condvar::new(),
        })
    }

    /// The domains that the thread has entered as held, as `vmsrs_lock_release_held` reads them.
    pub fn held(&self) -> Vec<u32> {
        let count = self.control.held_count.load(Ordering::Relaxed) as usize;
        (0..count.min(self.control.held.len()))
            .map(|place| self.control.held[place].load(Ordering::Relaxed))
            .collect()
    }
}
