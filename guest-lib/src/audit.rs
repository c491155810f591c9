//! Checks of a domain before it is committed: what a request damaged must not become the authority.
//!
//! What it costs grows with what the request has written: the audit looks at the pages that the driver
//! has drafts of, and at whole domains only if they are small or the request asked for it.

use crate::domain::Domain;
use crate::heap::{Damage, Heap};
use crate::invariant;
use crate::thread::{QUARANTINE, RECENT, Thread};
use vmsrs_protocol::PAGE_SIZE;

/// Blocks up to which the whole domain is checked always: cheaper than asking the driver.
const WHOLE: u64 = 64;

/// Pages that the driver is asked for at a time.
const PAGES: usize = 256;

/// Checks the server's invariants, gives the blocks that the request freed back to the heap, and checks
/// the heap.
///
/// # Errors
///
/// The first damage found.
pub(crate) fn audit(thread: &Thread, domain: &'static Domain) -> Result<(), Damage> {
    if !was_written(thread, domain) {
        return Ok(());
    }
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
    let limit = if thread.wants_whole_audit() {
        u64::MAX
    } else {
        WHOLE
    };
    if heap.check(limit)? || check_drafts(thread, domain, &heap)? {
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

/// Pages of a domain that the request has written, from `skip` on; `None` if nobody knows.
fn drafts(thread: &Thread, domain: &Domain, skip: usize, pages: &mut [u32]) -> Option<usize> {
    let backend = domain.app().backend();
    // An error is one of the commit, too, which reports it.
    let found = backend.drafts(thread.tag(), domain.number(), skip, pages);
    found.ok().flatten()
}

/// Whether the request may have written to the domain. A request that holds one domain alone has: it
/// would not be audited otherwise.
fn was_written(thread: &Thread, domain: &Domain) -> bool {
    thread.held().len() <= 1 || drafts(thread, domain, 0, &mut [0]) != Some(0)
}

/// Checks the pages that the request has written. False if nobody knows which they are.
fn check_drafts(thread: &Thread, domain: &Domain, heap: &Heap) -> Result<bool, Damage> {
    let mut pages = [0; PAGES];
    let mut skip = 0;
    loop {
        let Some(count) = drafts(thread, domain, skip, &mut pages) else {
            return Ok(false);
        };
        for page in &pages[..count] {
            let offset = u64::from(*page) * u64::from(PAGE_SIZE);
            heap.check_page(domain.app().base() + offset)?;
        }
        if count < PAGES {
            return Ok(true);
        }
        skip += count;
    }
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
