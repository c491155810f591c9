//! Holding a domain for what is done to it as a whole, without a function of the server.

use super::{Stop, failed, find_thread, give_up, lock};
use crate::error::Error;
use crate::failure::Kind;
use crate::os::errno;
use crate::state::Limits;
use crate::state::domain::Domain;
use crate::thread::{self, Thread};
use std::io;

/// Runs code of the library while a request holds the domain, whether or not it is one that requests may begin with. The code
/// writes to no domain.
///
/// # Errors
///
/// [`Error::Nested`], [`Error::LockTimeout`], [`Error::Deleted`], [`Error::System`], [`Error::Forked`], or what the code
/// returns.
#[cold]
pub(crate) fn hold<T>(
    domain: &'static Domain,
    limits: Limits,
    code: impl FnOnce(&Thread) -> Result<T, Error>,
) -> Result<T, Error> {
    let refused = |stop: Box<Stop>| match *stop {
        Stop::Refused(error) => error,
        // The driver has ended it.
        Stop::Failed(_) => {
            Error::system("holding the domain")(io::Error::from_raw_os_error(libc::ESTALE))
        }
    };
    let thread = match thread::idle(domain.app()) {
        Some(thread) => thread,
        None => find_thread(domain).map_err(refused)?,
    };
    thread.begin(limits).map_err(|error| *error)?;
    thread.set_domain(domain);
    match lock::lock(thread, domain, thread.lock_timeout_ms()) {
        Ok(()) => {
            let outcome = errno::kept(|| code(thread));
            give_up(thread);
            outcome
        }
        Err(_) if thread.is_pending() => {
            thread.note_failure(Kind::Deadline, 0, &[]);
            Err(refused(Box::new(failed(thread))))
        }
        Err(error) => {
            thread.end(true);
            thread.go_idle();
            Err(error)
        }
    }
}
