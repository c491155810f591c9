//! Checks of a domain before it is committed: what a request damaged must not become the authority.

use crate::domain::Domain;
use crate::heap::Damage;
use crate::invariant;
use crate::thread::{QUARANTINE, RECENT, Thread};

/// Blocks up to which the whole domain is checked. Above, the audit looks at the blocks that the
/// request took and freed, so that its cost stays flat.
const WHOLE: u64 = 64;

/// Checks the server's invariants, gives the blocks that the request freed back to the heap, and checks
/// the heap.
///
/// # Errors
///
/// The first damage found.
pub(crate) fn audit(thread: &Thread, domain: &'static Domain) -> Result<(), Damage> {
    invariant::check(thread, domain);
    let mut heap = domain.heap(thread);
    for place in 0..thread.quarantine.used().min(QUARANTINE) {
        let Some(noted) = thread.quarantine.get(place) else {
            continue;
        };
        if std::ptr::eq(noted.domain, domain) {
            thread.quarantine.take(place);
            heap.release(noted.address)?;
        }
    }
    if heap.check(WHOLE)? {
        return Ok(());
    }
    for place in 0..thread.recent.used().min(RECENT) {
        if let Some(noted) = thread.recent.get(place)
            && std::ptr::eq(noted.domain, domain)
        {
            heap.check_block(noted.address)?;
        }
    }
    Ok(())
}

/// Audits all domains that the request holds.
///
/// # Errors
///
/// The first damage found.
pub(crate) fn audit_all(thread: &Thread) -> Result<(), Damage> {
    for place in 0..vmsrs_protocol::shared::HELD_MAX {
        if let Some(domain) = thread.domain_at(place) {
            audit(thread, domain)?;
        }
    }
    Ok(())
}
