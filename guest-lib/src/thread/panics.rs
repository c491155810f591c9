//! Rust's panics on a thread, in its requests.
//!
//! Rust's library counts the panics that a thread unwinds for. One that is cut short stays in that count, and
//! `std::thread::panicking` is about the count alone: it would be true from then on. The hook says how many panics a request has
//! begun, and it is where one too many is taken back.

use super::{Thread, current};
use std::cell::Cell;
use std::panic::{catch_unwind, resume_unwind};

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Panics {
    /// The panics that began in the request with that tag, or since a defer of it began.
    begun: Cell<(u64, u32)>,
    /// The next panic is to take one from the thread's count.
    discounts: Cell<bool>,
}

impl Thread {
    fn panics(&self) -> u32 {
        let (tag, begun) = self.panics.begun.get();
        if tag == self.state().tag() { begun } else { 0 }
    }

    /// What runs from here on has begun none.
    pub(crate) fn forget_panics(&self) {
        self.panics.begun.set((self.state().tag(), 0));
    }

    /// A panic has begun, in its hook. False if it is none of the server's.
    pub(super) fn note_panic(&self) -> bool {
        if self.panics.discounts.take() {
            // In a hook, the beginning of a panic that has none itself is not counted, and its end is.
            let _ = catch_unwind(|| resume_unwind(Box::new(())));
            return false;
        }
        let begun = self.panics().saturating_add(1);
        self.panics.begun.set((self.state().tag(), begun));
        true
    }

    /// Takes the panics from the thread's count that were cut short here. `run` runs work aside. One that began before the request is
    /// the server's, and goes on.
    pub(crate) fn discount_panics(&self, run: impl Fn(&mut dyn FnMut())) {
        let mut left = self.panics();
        while left > 0 && std::thread::panicking() {
            left -= 1;
            self.panics.discounts.set(true);
            run(&mut || {
                let _ = catch_unwind(|| panic!("a panic that was cut short is over"));
            });
            self.panics.discounts.set(false);
        }
        self.forget_panics();
    }
}

/// How a thread was when something began that is to end otherwise where a panic unwinds it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Before {
    is_panicking: bool,
    begun: u32,
}

impl Before {
    pub(crate) fn now() -> Self {
        Self {
            is_panicking: std::thread::panicking(),
            begun: current().map_or(0, Thread::panics),
        }
    }

    /// Whether a panic unwinds what has begun since. Where the thread was panicking already, as a destructor is run in a panic of the
    /// server's, or where a panic that was cut short still counts, one that has begun since and was caught counts too.
    pub(crate) fn is_unwinding(self) -> bool {
        let now = Self::now();
        now.is_panicking && (!self.is_panicking || now.begun != self.begun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::mock::MockBackend;
    use crate::state::domain::Domain;
    use std::panic::AssertUnwindSafe;

    /// Notes at its end whether a panic unwinds it.
    struct Noted<'a>(Before, &'a Cell<Option<bool>>);

    impl Drop for Noted<'_> {
        fn drop(&mut self) {
            self.1.set(Some(self.0.is_unwinding()));
        }
    }

    fn look(domain: &'static Domain) {
        let outcome = domain.run(|_| {
            let seen = Cell::new(None);
            let note = || Noted(Before::now(), &seen);
            drop(note());
            assert_eq!(seen.take(), Some(false));
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                let _noted = note();
                panic!("in the request");
            }));
            assert!(panicked.is_err());
            assert_eq!(seen.take(), Some(true));
            drop(note());
            assert_eq!(seen.take(), Some(false));
            Ok::<_, Error>(())
        });
        outcome.unwrap();
    }

    struct Looks(&'static Domain);

    impl Drop for Looks {
        fn drop(&mut self) {
            look(self.0);
        }
    }

    #[test]
    fn a_panic_is_told_from_one_that_the_server_has_begun() {
        let app = MockBackend::app("panics", |_| ());
        let domain = app.domain("one").unwrap();
        look(domain);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _looks = Looks(domain);
            panic!("the server's");
        }));
        assert!(panicked.is_err());
    }
}
