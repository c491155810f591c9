//! The stacks that requests run on.
//!
//! A thread keeps its request stack from its registration to its end, then it goes to a pool for
//! the next thread. A failed request leaves nothing on it that is still needed: it is used from the top again.

use crate::error::Error;
use crate::os::lock::Lock;
use crate::os::region::Region;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Size of a request stack unless [`set_request_stack_size`] says otherwise.
pub const DEFAULT_REQUEST_STACK: usize = 256 * 1024;

/// Largest request stack.
pub(crate) const STACK_MAX: usize = 1 << 30;

/// Bytes of the guard below a request stack, and of a smaller one for processes that have no addresses left. Code that was
/// compiled without stack probes steps over as much as one frame has; a length of 32 bits does not reach beyond the
/// guard. It takes addresses, but no memory: of the 47 bits that a process has, 10,000 stacks leave more than half.
const GUARDS: [usize; 2] = [4 << 30, 64 << 20];

static SIZE: AtomicUsize = AtomicUsize::new(DEFAULT_REQUEST_STACK);
static POOL: Lock<Vec<Region>> = Lock::new(Vec::new());
static LENT: Lock<Vec<Lent>> = Lock::new(Vec::new());
static OUTSTANDING: AtomicUsize = AtomicUsize::new(0);

/// Most stacks that wait in the pool; more are given back to the system.
const POOL_MAX: usize = 256;

/// Sets the size of the request stacks of threads that run their first request from now on, in
/// bytes: at least 16 KiB, at most 1 GiB (other values are clamped), rounded up to pages.
pub fn set_request_stack_size(bytes: usize) {
    SIZE.store(valid(bytes), Ordering::Relaxed);
}

/// The nearest size that a request stack can have.
fn valid(bytes: usize) -> usize {
    bytes.clamp(16 * 1024, STACK_MAX).next_multiple_of(4096)
}

/// Request stacks that threads have at the moment.
#[must_use]
pub fn request_stacks() -> usize {
    OUTSTANDING.load(Ordering::Relaxed)
}

/// Maps a stack above the first of the guards that there are addresses for.
fn map(size: usize, guards: [usize; 2]) -> Result<Region, Error> {
    Region::above_guard(size, guards[0]).or_else(|_| Region::above_guard(size, guards[1]))
}

/// A stack that threads of the C library use until a word on it is 0.
struct Lent {
    region: Region,
    word: u64,
    /// It was found at 0: whoever has set it may be about to wake who waits for that, until the next look.
    is_over: bool,
}

impl Lent {
    /// Whether it can be used again.
    fn look(&mut self) -> bool {
        // SAFETY: a word in the region, by lend().
        let word = unsafe { (self.word as *const AtomicU32).as_ref() };
        let is_zero = word.is_none_or(|word| word.load(Ordering::Acquire) == 0);
        std::mem::replace(&mut self.is_over, is_zero) && is_zero
    }
}

/// Takes back those that are not used any more.
fn take_back() {
    let over = LENT.with(|lent| lent.extract_if(.., Lent::look).collect::<Vec<_>>());
    POOL.with(|pool| {
        let room = POOL_MAX.saturating_sub(pool.len());
        pool.extend(over.into_iter().map(|lent| lent.region).take(room));
    });
}

/// A request stack; returns to the pool when dropped.
#[derive(Debug)]
pub(crate) struct Stack(Option<Region>);

impl Stack {
    pub(crate) fn take() -> Result<Self, Error> {
        Self::take_sized(SIZE.load(Ordering::Relaxed))
    }

    /// One of at least that many bytes.
    pub(crate) fn take_large(bytes: usize) -> Result<Self, Error> {
        Self::take_sized(valid(bytes))
    }

    fn take_sized(size: usize) -> Result<Self, Error> {
        take_back();
        let pooled = POOL.with(|pool| {
            let place = pool.iter().position(|region| region.size() == size);
            place.map(|place| pool.swap_remove(place))
        });
        let region = match pooled {
            Some(region) => region,
            None => map(size, GUARDS)?,
        };
        OUTSTANDING.fetch_add(1, Ordering::Relaxed);
        Ok(Self(Some(region)))
    }

    /// Gives it away until a word on it is 0.
    pub(crate) fn lend(mut self, word: u64) {
        if let Some(region) = self.0.take() {
            let is_over = false;
            LENT.with(|lent| {
                lent.push(Lent {
                    region,
                    word,
                    is_over,
                });
            });
        }
    }

    pub(crate) fn region(&self) -> Option<&Region> {
        self.0.as_ref()
    }

    /// First byte after it; null if there is none.
    pub(crate) fn top(&self) -> *mut u8 {
        self.region().map_or(std::ptr::null_mut(), Region::top)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        OUTSTANDING.fetch_sub(1, Ordering::Relaxed);
        POOL.with(|pool| {
            if pool.len() < POOL_MAX {
                pool.extend(self.0.take());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lent_stack_is_used_again_when_its_word_is_0() {
        // A size that no other test has.
        const SIZE: usize = 68 * 1024;
        let stack = Stack::take_large(SIZE).unwrap();
        let low = stack.region().unwrap().low();
        // SAFETY: on the stack, which nothing runs on, and which stays mapped.
        let word = unsafe { &*low.add(64).cast::<AtomicU32>() };
        word.store(2, Ordering::Relaxed);
        stack.lend(word.as_ptr() as u64);
        let next = || Stack::take_large(SIZE).unwrap().region().unwrap().low();
        for _ in 0..3 {
            assert_ne!(next(), low);
        }
        word.store(0, Ordering::Relaxed);
        // Of the two in the pool it is the one that came last.
        let others = [0; 3].map(|_| Stack::take_large(SIZE).unwrap());
        assert!(
            others
                .iter()
                .any(|stack| stack.region().unwrap().low() == low)
        );
    }

    #[test]
    fn process_without_addresses_gets_a_smaller_guard() {
        let stack = map(16 * 1024, [1 << 48, 1 << 20]).unwrap();
        let low = stack.low() as u64;
        assert!(stack.is_below(low - (1 << 20)) && !stack.is_below(low - (1 << 20) - 1));
    }
}
