//! Questions about the request of the calling thread, and about pointers.

use super::codes::{errno_of, set_errno};
use crate::{Domain, held_domain, in_request, is_domain_address, usable_size};
use std::ffi::{c_int, c_void};
use std::ptr::{self, NonNull};

/// Tells whether the calling thread works for a request.
///
/// For code that is called in requests and outside of them: an allocator, a logger, a
/// wrapper of locks. Can be called anywhere.
///
/// @return 1 in the function of a request, of a step or of a thread that has joined one;
///   0 elsewhere, in deferred functions too.
#[must_use]
#[unsafe(no_mangle)]
pub extern "C" fn vmsrs_in_request() -> c_int {
    c_int::from(in_request())
}

/// Tells whether an address is one of those that domains have.
///
/// For a free() that gets blocks of domains and others. Only the number is compared: there may be
/// nothing at the address. Can be called anywhere.
///
/// @param address Any address.
/// @return 1 if it is; 0 if it is not, and for null.
#[must_use]
#[unsafe(no_mangle)]
pub extern "C" fn vmsrs_is_domain_address(address: *const c_void) -> c_int {
    c_int::from(is_domain_address(address.addr()))
}

/// Tells the number of a domain in its app.
///
/// All processes know the domain by it, for as long as it is not deleted. The host's tools
/// print it.
///
/// @param domain The domain.
/// @return The number; `UINT32_MAX` for null.
///
/// # Safety
///
/// `domain` comes from `vmsrs_domain_open` or is null.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_domain_number(domain: *const Domain) -> u32 {
    // SAFETY: a handle or null by contract.
    unsafe { domain.as_ref() }.map_or(u32::MAX, Domain::number)
}

/// Finds a domain that the request of the calling thread holds, by its number.
///
/// For what is stored in a domain and has to find it, such as an allocator: the address of a
/// handle is another one in each process, the number is not.
///
/// @param number A number from `vmsrs_domain_number()`.
/// @return The domain; null if the request holds none with that number, or the thread has no
///   request.
#[must_use]
#[unsafe(no_mangle)]
pub extern "C" fn vmsrs_held_domain(number: u32) -> *mut Domain {
    held_domain(number).map_or(ptr::null_mut(), |domain| ptr::from_ref(domain).cast_mut())
}

/// Tells how many bytes of a block may be used.
///
/// That is what was asked for: the bytes that follow are a red zone. As in `vmsrs_free()`, a
/// pointer into a domain of the request that is not a live block fails the request.
///
/// @param block A block of a domain that the request of the calling thread holds, or null.
/// @return The bytes. 0 for null; 0 with `errno` `EPERM` without a request, and for a pointer
///   into none of its domains.
///
/// # Safety
///
/// Any pointer may be passed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_usable_size(block: *const c_void) -> usize {
    let Some(block) = NonNull::new(block.cast_mut().cast::<u8>()) else {
        return 0;
    };
    usable_size(block).unwrap_or_else(|error| {
        set_errno(errno_of(&error));
        0
    })
}
