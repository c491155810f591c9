//! Tasks that threads of a request have dropped.

use super::State;
use std::ptr;
use std::sync::atomic::Ordering;

impl State {
    /// Takes the state of such a task, which is over: its remaining defers are run when the request ends,
    /// unless the thread that drops it runs them. Async-signal-safe.
    pub(crate) fn adopt(&self, dropped: &'static Self) {
        let mut first = self.dropped.load(Ordering::Relaxed);
        loop {
            dropped.next_dropped.store(first, Ordering::Relaxed);
            let place = ptr::from_ref(dropped).cast_mut();
            match self.dropped.compare_exchange_weak(
                first,
                place,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => first = now,
            }
        }
    }

    /// The states of tasks that were dropped in the request, newest first; each must be given back.
    pub(crate) fn take_dropped(&self) -> impl Iterator<Item = &'static Self> {
        let mut next = self.dropped.swap(ptr::null_mut(), Ordering::Acquire);
        std::iter::from_fn(move || {
            // SAFETY: null, or a state, which lives forever; on no other list.
            let state: &'static Self = unsafe { next.as_ref() }?;
            next = state.next_dropped.swap(ptr::null_mut(), Ordering::Relaxed);
            Some(state)
        })
    }
}
