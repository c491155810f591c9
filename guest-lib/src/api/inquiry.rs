//! What code that is called in requests and outside of them asks: allocators, loggers, wrappers of locks.

use crate::error::Error;
use crate::heap::Damage;
use crate::run::left::working;
use crate::state::domain::Domain;
use crate::thread::{self, Phase};
use std::ptr::NonNull;

/// Whether the calling thread works for a request, of any app: in the function of [`crate::Domain::run`], in a step of a
/// task, or in what has joined a request. Not in defers, which run when their request is over.
#[must_use]
pub fn in_request() -> bool {
    working().is_some_and(|thread| thread.phase() == Phase::Running)
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
