//! The stacks that requests run on.
//!
//! A thread keeps its request stack from its registration to its end, then it goes to a pool for
//! the next thread. A failed request leaves nothing on it that is still needed: it is used from the top again.

use crate::error::Error;
use crate::os::region::Region;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Size of a request stack unless [`set_request_stack_size`] says otherwise.
pub const DEFAULT_REQUEST_STACK: usize = 256 * 1024;

/// Bytes of the guard below a request stack: code that was compiled without stack probes steps over
/// as much as one frame has. It takes address space but no memory.
const GUARD: usize = 64 * 1024 * 1024;

static SIZE: AtomicUsize = AtomicUsize::new(DEFAULT_REQUEST_STACK);
/// Locked where a thread is registered or ends: outside of requests, and while its signals wait or its code is over.
static POOL: Mutex<Vec<Region>> = Mutex::new(Vec::new());
static OUTSTANDING: AtomicUsize = AtomicUsize::new(0);

/// Most stacks that wait in the pool; more are given back to the system.
const POOL_MAX: usize = 256;

/// Sets the size of the request stacks of threads that run their first request from now on, in
/// bytes: at least 16 KiB, at most 1 GiB (other values are clamped), rounded up to pages.
pub fn set_request_stack_size(bytes: usize) {
    let bytes = bytes.clamp(16 * 1024, 1 << 30).next_multiple_of(4096);
    SIZE.store(bytes, Ordering::Relaxed);
}

/// Request stacks that threads have at the moment.
#[must_use]
pub fn request_stacks() -> usize {
    OUTSTANDING.load(Ordering::Relaxed)
}

/// A request stack; returns to the pool when dropped.
#[derive(Debug)]
pub(crate) struct Stack(Option<Region>);

impl Stack {
    pub(crate) fn take() -> Result<Self, Error> {
        let size = SIZE.load(Ordering::Relaxed);
        let pooled = {
            let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
            pool.pop().filter(|region| region.size() == size)
        };
        let region = match pooled {
            Some(region) => region,
            None => Region::above_guard(size, GUARD)?,
        };
        OUTSTANDING.fetch_add(1, Ordering::Relaxed);
        Ok(Self(Some(region)))
    }

    pub(crate) fn region(&self) -> Option<&Region> {
        self.0.as_ref()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        OUTSTANDING.fetch_sub(1, Ordering::Relaxed);
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.len() < POOL_MAX {
            pool.extend(self.0.take());
        }
    }
}
