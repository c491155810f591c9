//! A thread's control block, which it shares with the driver.

use crate::shared::held::HeldList;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence, fence};
use vmsrs_protocol::shared::{HELD_MAX, KEY_WRITES_OVER, ThreadControl};

/// A control block that is mapped as long as its thread is registered.
///
/// All accesses are volatile: the driver reads it whenever the thread faults. The list of domains held
/// is written by several threads of a request, one at a time; the rest by its own thread alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Control(NonNull<ThreadControl>);

impl Control {
    /// # Safety
    ///
    /// The block stays mapped while this or a copy of it is used.
    pub(crate) unsafe fn new(block: NonNull<ThreadControl>) -> Self {
        Self(block)
    }

    #[inline]
    pub(crate) fn block(self) -> NonNull<ThreadControl> {
        self.0
    }

    #[inline]
    fn write<T>(self, field: impl FnOnce(*mut ThreadControl) -> *mut T, value: T) {
        compiler_fence(Ordering::SeqCst);
        // SAFETY: a field of a block that is mapped by new()'s contract.
        unsafe { field(self.0.as_ptr()).write_volatile(value) };
        compiler_fence(Ordering::SeqCst);
    }

    #[inline]
    fn read<T: Copy>(self, field: impl FnOnce(*mut ThreadControl) -> *mut T) -> T {
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as in write().
        unsafe { field(self.0.as_ptr()).read_volatile() }
    }

    /// Tag of the request that the thread works for, or 0.
    #[inline]
    pub(crate) fn tag(self) -> u64 {
        // SAFETY: the pointer is valid; only the field's address is taken.
        self.read(|block| unsafe { &raw mut (*block).tag })
    }

    /// From here on the thread works for that request. The fence orders this against what the thread reads
    /// next, for others that check who works for the request.
    pub(crate) fn set_tag(self, tag: u64) {
        // SAFETY: as in tag().
        self.write(|block| unsafe { &raw mut (*block).tag }, tag);
        fence(Ordering::SeqCst);
    }

    /// The same where an atomic operation on a lock's word orders it: before the request takes its first one, or after it
    /// has released the last one, and no other thread knows the tag.
    #[inline]
    pub(crate) fn set_tag_alone(self, tag: u64) {
        // SAFETY: as in tag().
        self.write(|block| unsafe { &raw mut (*block).tag }, tag);
    }

    /// Tag of the failed request that the driver has interrupted the thread for.
    #[inline]
    pub(crate) fn failed(self) -> u64 {
        // SAFETY: as in tag().
        self.read(|block| unsafe { &raw mut (*block).failed })
    }

    /// What the driver would write; for the backend without one.
    pub(crate) fn set_failed(self, tag: u64) {
        // SAFETY: as in tag().
        self.write(|block| unsafe { &raw mut (*block).failed }, tag);
    }

    /// `CLOCK_MONOTONIC` nanoseconds, or 0 for no deadline.
    #[inline]
    pub(crate) fn set_deadline(self, nanoseconds: u64) {
        self.write(
            // SAFETY: as in tag().
            |block| unsafe { &raw mut (*block).deadline_ns },
            nanoseconds,
        );
    }

    /// Protection key of the request's drafts.
    #[inline]
    pub(crate) fn set_key(self, key: u32) {
        // SAFETY: as in tag().
        self.write(|block| unsafe { &raw mut (*block).key }, key);
    }

    #[inline]
    pub(crate) fn key(self) -> u32 {
        // SAFETY: as in tag().
        self.read(|block| unsafe { &raw mut (*block).key })
    }

    /// From here on the driver refuses what a signal handler of the server would write for the request.
    #[inline]
    pub(crate) fn end_writes(self) {
        self.set_key(KEY_WRITES_OVER);
    }

    /// Whether the list of domains has that one alone. Asked by the only thread that writes the list.
    #[inline]
    pub(crate) fn lists_only(self, domain: u32) -> bool {
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as in write(); nobody writes it meanwhile.
        let (count, first) = unsafe { ((*self.0.as_ptr()).held_count, (*self.0.as_ptr()).held[0]) };
        count == 1 && first == domain
    }

    #[inline]
    fn held(self, place: usize) -> *mut u32 {
        // SAFETY: as in tag().
        let held = unsafe { &raw mut (*self.0.as_ptr()).held };
        held.cast::<u32>().wrapping_add(place.min(HELD_MAX - 1))
    }
}

impl HeldList for Control {
    #[inline]
    fn count(&self) -> u32 {
        // SAFETY: as in tag().
        self.read(|block| unsafe { &raw mut (*block).held_count })
    }

    #[inline]
    fn set_count(&self, count: u32) {
        // SAFETY: as in tag().
        self.write(|block| unsafe { &raw mut (*block).held_count }, count);
    }

    #[inline]
    fn entry(&self, place: usize) -> u32 {
        self.read(|_| self.held(place))
    }

    #[inline]
    fn set_entry(&self, place: usize, domain: u32) {
        self.write(|_| self.held(place), domain);
    }
}
