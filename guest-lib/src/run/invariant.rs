//! Invariants that the server registers: what must hold in every domain that is committed.
//!
//! Checks run inside of the request, before the audit, so an error in one is an error of the request.

use crate::api::app::App;
use crate::api::domain::Domain;
use crate::error::Error;
use crate::failure::Kind;
use crate::run::panic_text;
use crate::thread::{self, Thread};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

/// A check: an error says what does not hold.
type Check = dyn Fn(&'static Domain) -> Result<(), String> + Send + Sync;

/// The invariant of an app or a domain, registered or not.
#[derive(Default)]
pub(crate) struct Invariant(OnceLock<Box<Check>>);

impl fmt::Debug for Invariant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.0.get().is_some() {
            "set"
        } else {
            "none"
        };
        formatter.write_str(state)
    }
}

impl Invariant {
    fn set(&self, check: Box<Check>) -> Result<(), Error> {
        let taken = |_| Error::Argument("the invariant, since there is one already");
        self.0.set(check).map_err(taken)
    }
}

impl App {
    /// Registers a check of every domain of the app, once in a process. It is called before anything
    /// of a domain is committed (at the end of a request, by [`crate::Request::commit`] and by
    /// [`crate::Entered::leave`]), in the request, for each domain that is to be committed with
    /// something written by the request. If it gives an error, panics, or dies of any other error,
    /// the request fails with [`Kind::Invariant`] and the message.
    ///
    /// The check should only read. What it costs, every commit costs.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] if the app has one.
    pub fn set_invariant(
        &self,
        check: impl Fn(&'static Domain) -> Result<(), String> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        self.invariant().set(Box::new(check))
    }
}

impl Domain {
    /// Like [`App::set_invariant`], for this domain. The app's is checked as well.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] if the domain has one.
    pub fn set_invariant(
        &self,
        check: impl Fn(&'static Domain) -> Result<(), String> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        self.invariant().set(Box::new(check))
    }
}

/// Checks a domain that the request holds and is about to commit; makes the request fail if its
/// invariants do not hold.
pub(crate) fn check(thread: &Thread, domain: &'static Domain) {
    for invariant in [domain.app().invariant(), domain.invariant()] {
        let Some(check) = invariant.0.get() else {
            continue;
        };
        thread.set_checking(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| check(domain)));
        thread.set_checking(false);
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(message)) => thread::fail_request(Kind::Invariant, 0, message.as_bytes()),
            Err(payload) => {
                thread::fail_request(Kind::Invariant, 0, panic_text(&*payload).as_bytes())
            }
        }
    }
}
