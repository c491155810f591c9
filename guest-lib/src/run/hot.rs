//! Requests inside a hot domain, whose resident pages they write without making drafts.

use super::audit::has_only_domain;
use super::{Stop, failed};
use crate::failure::Kind;
use crate::shared::pkru;
use crate::state::domain::Domain;
use crate::thread::{self, Thread};
use std::sync::atomic::Ordering;

/// What such a request is told.
pub(super) const TAKEN: &[u8] = b"a domain's lock word was overwritten";

/// Lets a request, which has just locked its first domain, write to its resident pages, if it is hot.
#[cold]
pub(super) fn enter(thread: &Thread, domain: &'static Domain, tag: u64) -> Result<(), Box<Stop>> {
    let Some(key) = domain.hot().key(domain.number()) else {
        return Ok(());
    };
    if claim(domain, key, tag) {
        return Ok(());
    }
    cool_begun(thread, domain, tag).map_err(Box::new)
}

/// Has the first domain of a request, which has just locked it, not be hot. Otherwise the request is over.
pub(crate) fn cool_begun(thread: &Thread, domain: &Domain, tag: u64) -> Result<(), Stop> {
    cool(domain, tag).map_err(|kind| {
        thread.note_failure(kind, 0, TAKEN);
        failed(thread)
    })
}

/// False if the driver is changing what is resident, or another request is inside, since a stray write has changed the
/// lock's word.
fn claim(domain: &Domain, key: u32, tag: u64) -> bool {
    let (hot, number) = (domain.hot(), domain.number());
    pkru::enter_domain(key);
    let claim = hot.claim(key, number);
    let claimed = claim.compare_exchange(0, tag, Ordering::SeqCst, Ordering::Relaxed);
    if claimed.is_ok() {
        if hot.key(number) == Some(key) {
            return true;
        }
        // Unless it is another's by now.
        let _ = claim.compare_exchange(tag, 0, Ordering::SeqCst, Ordering::Relaxed);
    }
    pkru::leave_domain(key);
    false
}

/// Has a domain that the request holds not be hot. The error is what the request fails with.
fn cool(domain: &Domain, tag: u64) -> Result<(), Kind> {
    let answer = domain.app().backend().cool(tag, domain.number());
    match answer.map_err(|error| error.raw_os_error()) {
        // Without the device nothing more becomes a draft, and the commit says so.
        Ok(()) | Err(Some(libc::ENODEV)) => Ok(()),
        Err(Some(libc::ESTALE)) => Err(Kind::Deadline),
        Err(_) => Err(Kind::Memory),
    }
}

/// The same for a domain that is not the request's first, which it has just locked. Fails the request if it cannot.
pub(crate) fn cool_entered(thread: &Thread, domain: &Domain) {
    if domain.may_be_hot()
        && let Err(kind) = cool(domain, thread.tag())
    {
        thread::fail_request(kind, 0, TAKEN);
    }
}

/// Whether a request that ends may commit from inside its hot domain: it is one thread's, and in that domain alone.
pub(super) fn may_stay(thread: &Thread) -> bool {
    is_alone(thread)
        && !thread.wants_whole_audit()
        && thread
            .domain()
            .is_some_and(|domain| domain.hot().key(domain.number()).is_some())
}

/// Whether one thread alone has worked for a request that ends, and in one domain alone, which has a heap.
pub(super) fn is_alone(thread: &Thread) -> bool {
    let state = thread.state();
    state.is_alone()
        && !state.may_have_drafts()
        && has_only_domain(thread)
        && state.first_has_heap()
}

/// What the request has written to resident pages becomes drafts: from here on it is like any other.
pub(crate) fn leave(thread: &Thread) {
    if !thread.is_inside_hot() {
        return;
    }
    let cooled = thread.domain().map(|domain| cool(domain, thread.tag()));
    match cooled {
        Some(Ok(())) => thread.state().note_drafts(),
        Some(Err(kind)) => thread::fail_request(kind, 0, TAKEN),
        None => thread::fail_request(Kind::Memory, 0, TAKEN),
    }
}
