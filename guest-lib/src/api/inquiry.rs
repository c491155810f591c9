//! What code that is called in requests and outside of them asks: allocators, loggers, wrappers of locks.

use crate::error::Error;
use crate::heap::Damage;
use crate::run::left::working;
use crate::state::domain::Domain;
use crate::thread::{self, Phase};
use std::ptr::NonNull;
use vmsrs_protocol::{APP_BASE, APP_PAGES, MAX_APPS, PAGE_SIZE};

/// Whether the calling thread works for a request, of any app: in the function of [`crate::Domain::run`], in a step of a
/// task, or in what has joined a request. Not in defers, which run when their request is over.
#[must_use]
pub fn in_request() -> bool {
    working().is_some_and(|thread| thread.phase() == Phase::Running)
}

/// Whether an address is one of those that domains have, of any app: a number is compared, and there may be nothing at the
/// address. For allocators' `free`, which gets blocks of domains and others.
#[must_use]
pub const fn is_domain_address(address: usize) -> bool {
    const BYTES: u64 = MAX_APPS as u64 * APP_PAGES as u64 * PAGE_SIZE as u64;
    // Below the first one it wraps around.
    (address as u64).wrapping_sub(APP_BASE) < BYTES
}

/// The domain with a number ([`Domain::number`]) that the calling thread's request holds. `None` if it holds none with that number, and
/// without a request. For what is stored in a domain and has to find it: a handle's address is another one in each process, the
/// number is not.
#[must_use]
pub fn held_domain(number: u32) -> Option<&'static Domain> {
    let thread = working()?;
    thread.reject_reentry();
    thread.exclusive(|| {
        let state = thread.state();
        let mut held = (0..state.places()).filter_map(|place| state.domain_at(place));
        held.find(|domain| domain.number() == number)
    })
}

/// Bytes that a block, or a chunk of a slab that is in use, has: what was asked for. Those that follow are a red zone. The block is of a domain
/// that the calling thread's request holds. A pointer into such a domain that is not a live block makes the request fail, as in
/// [`crate::Domain::deallocate`].
///
/// # Errors
///
/// [`Error::NotInRequest`]; [`Error::NotHeld`] for any other pointer.
pub fn usable_size(block: NonNull<u8>) -> Result<usize, Error> {
    let address = block.as_ptr() as u64;
    let thread = working().ok_or(Error::NotInRequest)?;
    thread.reject_reentry();
    thread.exclusive(|| {
        let state = thread.state();
        for domain in (0..state.places()).filter_map(|place| state.domain_at(place)) {
            match state.heap(domain).size_inside(address) {
                Ok(None) => {}
                Ok(Some(size)) => return Ok(size),
                Err(Damage { kind, address }) => thread::fail_request(kind, address, &[]),
            }
        }
        Err(Error::NotHeld)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_domains_are_known() {
        let first = APP_BASE as usize;
        // 63 apps of 1 TiB.
        let end = first + (63 << 40);
        assert!(is_domain_address(first) && is_domain_address(end - 1));
        assert!(!is_domain_address(first - 1) && !is_domain_address(end));
        assert!(!is_domain_address(0) && !is_domain_address(usize::MAX));
        let local = 0u8;
        assert!(!is_domain_address(std::ptr::from_ref(&local).addr()));
    }
}
