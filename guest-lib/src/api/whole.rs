//! What is done to a domain as a whole.

use super::domain::DomainOptions;
use super::options::Options;
use crate::error::Error;
use crate::run::hold::hold;
use crate::run::left::end_left;
use crate::state::domain::{Domain, Fate};
use std::io;
use std::time::Duration;

/// How large a domain is, and how it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainInfo {
    /// Pages of 4 KiB that it has of the window.
    pub pages: u32,
    /// Pages of these that were ever committed.
    pub committed: u32,
    /// Committed pages whose newest version the host has not sealed yet.
    pub unsealed: u32,
    /// Pages that the request which holds it has written so far, and those that stay writable between requests.
    pub drafts: u32,
    /// How long it is refused for its failures ([`crate::Budget`]); zero if it is not.
    pub quarantine: Duration,
}

impl Domain {
    /// Deletes the domain: its content and its key are gone, for all processes. It waits for the request that holds the
    /// domain, as long as a request waits for a lock. Its pages go back to the window; what other processes have mapped of them
    /// is gone at once. Opening the key again makes a new domain.
    ///
    /// Requests that wait for the domain, and all later ones, get [`Error::Deleted`]. This handle stays valid for that, as do
    /// those of other processes. Pointers into the domain lead nowhere, or into another domain later. A reader that
    /// does not hold the domain gets SIGSEGV.
    ///
    /// A deletion counts like a commit: what was committed before is sealed with it or before it. After the guest's
    /// crash the domain is there as a whole, or gone as a whole; [`crate::App::flush`] waits until it is gone for good.
    ///
    /// A domain in quarantine can be deleted, and one whose heap this library does not understand is if it is open.
    ///
    /// # Errors
    ///
    /// [`Error::Nested`] in a request or a defer, [`Error::LockTimeout`], [`Error::Deleted`], [`Error::System`],
    /// [`Error::Forked`].
    pub fn delete(&'static self) -> Result<(), Error> {
        end_left();
        let app = self.app();
        let outcome = hold(self, Options::default().limits(), |thread| {
            // What is locked may be another domain with its number.
            if self.is_gone() {
                return Err(Error::Deleted);
            }
            // Before the number can be another domain's.
            self.set_fate(Fate::Doomed);
            let deleted = app.backend().delete(thread.tag(), self.number());
            deleted.map_err(|error| {
                self.set_fate(Fate::There);
                why("deleting the domain")(error)
            })
        });
        if matches!(outcome, Ok(()) | Err(Error::Deleted)) {
            app.forget_domain(self);
            app.note_all_deletions();
        }
        outcome
    }

    /// Empties the domain: deletes it, and opens its key again, with a mirror if it had one. Returns the new domain; this handle is
    /// that of a deleted one from then on, and so are those of other processes. An invariant and a budget of the domain are to
    /// be set again.
    ///
    /// After the guest's crash the domain is there with all that it had, or empty.
    ///
    /// # Errors
    ///
    /// As [`Domain::delete`]; and as [`crate::App::domain`], with which the domain is deleted.
    pub fn clear(&'static self) -> Result<&'static Self, Error> {
        self.delete()?;
        let options = DomainOptions {
            mirror: self.is_mirrored(),
        };
        self.app().domain_with(self.key(), options)
    }

    /// How large the domain is, and how it is. Without protection all pages count as committed.
    ///
    /// # Errors
    ///
    /// [`Error::Deleted`], [`Error::System`].
    pub fn info(&'static self) -> Result<DomainInfo, Error> {
        end_left();
        if self.is_gone() {
            return Err(Error::Deleted);
        }
        let backend = self.app().backend();
        let counted = backend.domain_info(self.number());
        let counted = counted.map_err(why("counting the domain's pages"))?;
        Ok(DomainInfo {
            pages: counted.pages,
            committed: counted.committed,
            unsealed: counted.unsealed,
            drafts: counted.drafts,
            quarantine: self.refused_for(),
        })
    }
}

/// What an error of the driver means.
fn why(call: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |error| match error.raw_os_error() {
        // It knows no domain with the number.
        Some(libc::EINVAL | libc::EIDRM) => Error::Deleted,
        _ => Error::system(call)(error),
    }
}

#[cfg(test)]
mod tests;
