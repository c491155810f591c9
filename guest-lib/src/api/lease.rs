//! Leases: bytes of a domain that are sent outside of requests, without a copy.

use crate::error::{Error, RunError};
use crate::os::view::View;
use crate::run::request::Request;
use crate::state::domain::Domain;
use crate::thread;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;

/// Bytes of a domain as a commit has left them, to be read outside of requests: by a `write` or `send` to a slow client, for example,
/// which may take any number of turns of an event loop.
///
/// They stay as they are, at addresses of their own, whatever becomes of the domain meanwhile: requests change what the lease was
/// taken of, free it, or delete the domain, and nobody waits. The lease ends when it is dropped, by any thread; a child
/// of `fork` does not have it. A lease that is never dropped keeps its pages until the process ends.
///
/// Without protection it is a copy.
///
/// A lease belongs outside of domains: what a request that fails has done to one in a domain is undone, but a lease that it has ended
/// stays ended. The value that comes back then is not a lease any more, and must not be read; it can be dropped, which does nothing.
///
/// A page of it whose memory the host has lost cannot be read: a system call gives `EFAULT`, and a direct access raises SIGBUS.
pub struct Lease {
    /// Always there until it is dropped. A request may be cut short right then, and the value be used afterwards: it is empty.
    view: Option<View>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Lease")
            .field("first", &self.as_ptr())
            .field("length", &self.len())
            .finish_non_exhaustive()
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.view.as_ref().map_or(&[], View::bytes)
    }
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // An interrupt would leave it mapped.
        thread::uninterrupted(|| drop(self.view.take()));
    }
}

impl Lease {
    /// What C has of it.
    pub(crate) fn into_view(mut self) -> Option<View> {
        self.view.take()
    }
}

/// Why nothing was leased though the request's function has returned.
enum Nothing<E> {
    GivenUp(E),
    Refused(Error),
}

/// Why a lease is refused.
fn why(domain: &Domain) -> impl FnOnce(io::Error) -> Error {
    move |error| match error.raw_os_error() {
        Some(libc::EBUSY) => Error::Uncommitted,
        Some(libc::ENOSPC) => Error::Limit("leased pages"),
        Some(libc::EINVAL) => Error::Argument("the bytes are not in one block of the domain"),
        Some(libc::EIO) => Error::Damaged {
            domain: domain.number(),
        },
        _ => Error::system("leasing bytes of a domain")(error),
    }
}

impl Domain {
    /// Leases bytes of the domain: runs `find` as a request, and takes the lease of what that returns before the request ends. So
    /// they are what the request has seen, and they are leased only if it succeeds. Nothing is leased if `find` returns `None`.
    ///
    /// The bytes are (a part of) one block. They have to be committed: the request may change other ones, in the same block too.
    ///
    /// The lease costs two calls of the kernel and a page fault: small values are copied for less.
    ///
    /// # Errors
    ///
    /// As [`Domain::run`]; and [`RunError::Refused`] with [`Error::Uncommitted`], with [`Error::Limit`] when all leases together have
    /// more pages than the pool has frames, or those of pages that are not sealed yet more than an eighth of it, or the process has
    /// 262,144 leases, with [`Error::Argument`] if the bytes are not the domain's, or [`Error::Damaged`]. The request is given up then.
    pub fn lease<E>(
        &'static self,
        find: impl FnOnce(&Request) -> Result<Option<NonNull<[u8]>>, E>,
    ) -> Result<Option<Lease>, RunError<E>> {
        // On the caller's stack, where it is dropped if the request fails after all.
        let mut taken = None;
        let ended = self.run(|request| match find(request) {
            Ok(None) => Ok(()),
            Ok(Some(bytes)) => self.take(bytes, &mut taken).map_err(Nothing::Refused),
            Err(error) => Err(Nothing::GivenUp(error)),
        });
        match ended {
            Ok(()) => Ok(taken),
            Err(RunError::GivenUp(Nothing::GivenUp(error))) => Err(RunError::GivenUp(error)),
            Err(RunError::GivenUp(Nothing::Refused(error)) | RunError::Refused(error)) => {
                Err(RunError::Refused(error))
            }
            Err(RunError::Failed(failure)) => Err(RunError::Failed(failure)),
        }
    }

    /// Takes the lease, or nothing: an interrupt waits meanwhile.
    fn take(&self, bytes: NonNull<[u8]>, taken: &mut Option<Lease>) -> Result<(), Error> {
        let thread = thread::current().ok_or(Error::NotInRequest)?;
        let (address, length) = (bytes.as_ptr().cast::<u8>() as u64, bytes.len());
        thread.critical(|| {
            let leased = self.app().backend().lease(self.number(), address, length);
            *taken = Some(Lease {
                view: Some(leased.map_err(why(self))?),
            });
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
