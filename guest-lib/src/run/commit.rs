//! Audit and commit.

use super::hot;
use crate::error::Error;
use crate::failure::Kind;
use crate::heap::Damage;
use crate::thread::{self, Phase, Thread};
use std::io;
use vmsrs_protocol::NONE;
use vmsrs_protocol::ioctl::COMMIT_SEAL;

/// Without protection nobody knows what was written: the audit always runs.
pub(super) fn needs_audit(thread: &Thread) -> bool {
    thread.has_drafts() || !thread.app().protects() || !thread.is_intact()
}

/// Audits and commits from inside the request, which fails with what the audit finds. Meanwhile no
/// other thread of the request uses its heaps: what is committed is what was audited.
pub(crate) fn audited<T>(
    thread: &Thread,
    audit: impl FnOnce(&Thread) -> Result<(), Damage>,
    commit: impl FnOnce() -> T,
) -> T {
    thread.reject_reentry();
    hot::leave(thread);
    thread.exclusive(|| {
        if needs_audit(thread)
            && let Err(damage) = audit(thread)
        {
            thread::fail_request(damage.kind, damage.address, &[]);
        }
        thread.critical(commit)
    })
}

/// Handles a refused commit: if the request has failed meanwhile, it fails here too.
pub(crate) fn refused_commit(thread: &Thread, error: io::Error) -> Error {
    if error.raw_os_error() == Some(libc::ESTALE) && thread.phase() == Phase::Running {
        thread::fail_request(Kind::Deadline, 0, &[]);
    }
    Error::system("committing")(error)
}

/// Commits what the request has written, if anything. `flags`: [`COMMIT_ALONE`](vmsrs_protocol::ioctl::COMMIT_ALONE) or 0.
pub(crate) fn commit_all(thread: &Thread, seal: bool, flags: u32) -> Result<(), Error> {
    if !thread.has_drafts() {
        return Ok(());
    }
    let committed = commit_listed(thread, seal, flags).map_err(|error| *error);
    if is_committed(&committed) {
        thread.set_left_pages(0);
        thread.note_committed();
    }
    committed
}

/// Commits what the request has written, which is something.
#[inline]
pub(super) fn commit_listed(thread: &Thread, seal: bool, flags: u32) -> Result<(), Box<Error>> {
    let backend = thread.app().backend();
    let seals = if seal { COMMIT_SEAL } else { 0 };
    match backend.commit(thread.tag(), NONE, flags | seals) {
        Ok(()) => Ok(()),
        Err(error) => not_committed(thread, seal, error),
    }
}

/// Whether something is committed, by what came of it.
pub(crate) fn is_committed(outcome: &Result<(), Error>) -> bool {
    matches!(
        outcome,
        Ok(()) | Err(Error::Unsealed | Error::Damaged { .. })
    )
}

#[cold]
fn not_committed(thread: &Thread, seal: bool, error: io::Error) -> Result<(), Box<Error>> {
    Err(Box::new(match error.raw_os_error() {
        Some(libc::ETIMEDOUT) if seal => Error::Unsealed,
        // Of several domains nobody says which one it is.
        Some(libc::EIO) if seal => Error::Damaged {
            domain: thread.state().listed_at(0).unwrap_or(NONE),
        },
        _ => refused_commit(thread, error),
    }))
}
