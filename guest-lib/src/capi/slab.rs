//! Slabs in domains.

use super::codes::{VMSRS_EINVAL, errno_of, set_errno, status};
use crate::{Domain, Error};
use std::ffi::{c_int, c_void};
use std::ptr::{self, NonNull};

/// Allocates a slab in a domain: chunks that the server gives out itself.
///
/// A chunk begins every `chunk_bytes` bytes, of which the last `VMSRS_CHUNK_OVERHEAD` before
/// the next chunk are the library's. The server keeps its free lists, and says what it gives
/// out (`vmsrs_slab_take()`) and gets back (`vmsrs_slab_give()`). So an overrun from one chunk
/// into the next is found, and so are writes to a free chunk.
///
/// All chunks of a new slab are free. The first `keep` bytes of each are the server's, for
/// links, and undefined. The call writes to all chunks.
///
/// `vmsrs_free()` and `vmsrs_realloc()` take no chunks: they fail the request.
/// `vmsrs_usable_size()` tells the size that a chunk was taken with.
///
/// @param domain A domain that the request of the calling thread holds.
/// @param chunk_bytes Bytes from one chunk to the next: a multiple of 16, from 32 to 32 MiB.
/// @param chunks How many; at least 1.
/// @param keep Bytes at the start of each chunk.
/// @return The first chunk, aligned to 16 bytes, or null with `errno`, as `vmsrs_alloc()`;
///   `EINVAL` also for a wrong size.
///
/// # Safety
///
/// `domain` comes from `vmsrs_domain_open` or is null.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_slab_alloc(
    domain: *const Domain,
    chunk_bytes: usize,
    chunks: usize,
    keep: usize,
) -> *mut c_void {
    // SAFETY: a handle or null by contract.
    let Some(domain) = (unsafe { domain.as_ref() }) else {
        set_errno(libc::EINVAL);
        return ptr::null_mut();
    };
    match domain.allocate_slab(chunk_bytes, chunks, keep) {
        Ok(slab) => slab.as_ptr().cast(),
        Err(error) => {
            set_errno(errno_of(&error));
            ptr::null_mut()
        }
    }
}

/// Says that a free chunk of a slab is in use.
///
/// What the server kept of the chunk stays as it is; the rest is undefined. Nothing but the
/// chunk is written to. A pointer that is not a free chunk fails the request
/// (`VMSRS_KIND_HEAP_CORRUPT`): a list of the server is wrong. So does a chunk that was
/// written to since it was free (`VMSRS_KIND_USE_AFTER_FREE`); this does not return then.
///
/// @param domain A domain that the request of the calling thread holds.
/// @param chunk The chunk.
/// @param size Bytes of it that are used: what follows them is a red zone.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL `domain` or `chunk` is null, or the chunk has fewer bytes.
/// @retval VMSRS_ENOREQUEST
/// @retval VMSRS_ENOTHELD
///
/// # Safety
///
/// `domain` as `vmsrs_slab_alloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_slab_take(
    domain: *const Domain,
    chunk: *mut c_void,
    size: usize,
) -> c_int {
    // SAFETY: the same contract.
    unsafe {
        with(domain, chunk, |domain, chunk| {
            domain.take_chunk(chunk, size)
        })
    }
}

/// Says that a chunk of a slab is free.
///
/// Up to 1024 bytes after the first `keep` ones are filled with a pattern. A pointer that is
/// not a chunk in use fails the request, and so does a chunk that was written past its size,
/// as in `vmsrs_free()`.
///
/// @param domain A domain that the request of the calling thread holds.
/// @param chunk The chunk.
/// @param keep Bytes at its start that stay, and that the server may write to: links of its
///   list.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL `domain` or `chunk` is null, or the chunk has fewer bytes.
/// @retval VMSRS_ENOREQUEST
/// @retval VMSRS_ENOTHELD
///
/// # Safety
///
/// `domain` as `vmsrs_slab_alloc`; nobody uses the rest of the chunk afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_slab_give(
    domain: *const Domain,
    chunk: *mut c_void,
    keep: usize,
) -> c_int {
    // SAFETY: the same contract.
    unsafe {
        with(domain, chunk, |domain, chunk| {
            domain.give_chunk(chunk, keep)
        })
    }
}

/// Frees a slab, whatever its chunks are.
///
/// A pointer that is not the first chunk of a slab fails the request, as in `vmsrs_free()`.
///
/// @param domain A domain that the request of the calling thread holds.
/// @param slab What `vmsrs_slab_alloc()` has returned.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL `domain` or `slab` is null.
/// @retval VMSRS_ENOREQUEST
/// @retval VMSRS_ENOTHELD
///
/// # Safety
///
/// `domain` as `vmsrs_slab_alloc`; nobody uses the chunks afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_slab_free(domain: *const Domain, slab: *mut c_void) -> c_int {
    // SAFETY: the same contract.
    unsafe { with(domain, slab, |domain, slab| domain.deallocate_slab(slab)) }
}

/// Does something with a chunk.
///
/// # Safety
///
/// `domain` as `vmsrs_slab_alloc`.
unsafe fn with(
    domain: *const Domain,
    chunk: *mut c_void,
    work: impl FnOnce(&'static Domain, NonNull<u8>) -> Result<(), Error>,
) -> c_int {
    // SAFETY: a handle or null by contract.
    match (unsafe { domain.as_ref() }, NonNull::new(chunk.cast())) {
        (Some(domain), Some(chunk)) => status(work(domain, chunk)),
        _ => VMSRS_EINVAL,
    }
}
