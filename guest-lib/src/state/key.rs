//! A request's protection key.

use super::State;
use crate::shared::control::Control;
use crate::shared::pkru;
use std::sync::atomic::Ordering;
use vmsrs_protocol::shared::KEY_WRITES_OVER;

impl State {
    /// Gives the key back. If a stray write has changed it here or in the control block, nobody gets it any more: the other
    /// one may be another request's.
    pub(super) fn end_key(&self) {
        let noted = self.control().map(Control::key);
        let key = self.last_key();
        self.set_key(match noted {
            Some(noted) if noted != key.number && noted != KEY_WRITES_OVER => pkru::Key::default(),
            _ => pkru::give_back(key),
        });
    }

    #[cold]
    pub(super) fn take_other_key(&self) -> pkru::Key {
        let key = pkru::take_other(self.key());
        self.set_key(key);
        key
    }

    #[inline]
    pub(super) fn last_key(&self) -> pkru::Key {
        pkru::Key {
            number: self.key.load(Ordering::Relaxed),
            free: self.key_free.load(Ordering::Relaxed),
        }
    }

    #[inline]
    pub(super) fn set_key(&self, key: pkru::Key) {
        self.key.store(key.number, Ordering::Relaxed);
        self.key_free.store(key.free, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::MockBackend;
    use crate::{Error, Kind, RunError, thread};

    #[test]
    fn a_stray_write_to_the_key_gives_no_other_requests_key_back() {
        let app = MockBackend::app("overwritten key", |_| ());
        let [one, two] = ["one", "two"].map(|key| app.domain(key).unwrap());
        pkru::put_for_test(14);
        let others = pkru::take_other(14);
        assert_eq!((others.number, pkru::requests_with(14)), (14, 1));
        for held in [&[][..], &[two]] {
            let outcome = one.run(|request| {
                request.enter_all(held)?;
                thread::current().unwrap().state().set_key(others);
                Ok::<_, Error>(())
            });
            let Err(RunError::Failed(failure)) = outcome else {
                panic!("{outcome:?}")
            };
            assert_eq!((failure.kind, pkru::requests_with(14)), (Kind::Memory, 1));
            one.run(|_| Ok::<_, Error>(())).unwrap();
        }
    }
}
