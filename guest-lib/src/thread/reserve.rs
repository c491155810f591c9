//! Memory that is kept ready for what a failure is told by, should a failed request have left none.

use super::Thread;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// It is given to the heap when that has no room, so it is larger than what is needed then.
const SIZE: Layout = Layout::new::<[u64; 2048]>();

/// Null after it was needed.
static RESERVE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

/// Keeps memory ready. False if there is none.
pub(crate) fn fill() -> bool {
    if !RESERVE.load(Ordering::Relaxed).is_null() {
        return true;
    }
    // SAFETY: not of size 0.
    let block = unsafe { alloc(SIZE) };
    let (order, none) = (Ordering::AcqRel, ptr::null_mut());
    if RESERVE
        .compare_exchange(none, block, order, Ordering::Relaxed)
        .is_err()
    {
        give_back(block);
    }
    !block.is_null()
}

/// Gives a block like that to the heap, unless it is null.
fn give_back(block: *mut u8) {
    if !block.is_null() {
        // SAFETY: made in fill().
        unsafe { dealloc(block, SIZE) };
    }
}

impl Thread {
    /// Gives what is kept ready to the heap, which has no room.
    #[cold]
    fn use_reserve(&self) {
        give_back(RESERVE.swap(ptr::null_mut(), Ordering::AcqRel));
        // As the thread's next request begins, there may be memory.
        self.look_next();
    }

    /// A box for what a failure is told by.
    pub(crate) fn boxed<T>(&self, value: T) -> Box<T> {
        const { assert!(size_of::<T>() != 0) };
        let layout = Layout::new::<T>();
        // SAFETY: not of size 0.
        let mut place = unsafe { alloc(layout) };
        if place.is_null() {
            self.use_reserve();
            // SAFETY: as above.
            place = unsafe { alloc(layout) };
        }
        if place.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: a block of that layout, which is a box's from here on.
        unsafe {
            let place = place.cast::<T>();
            place.write(value);
            Box::from_raw(place)
        }
    }

    /// A string with room for that many bytes, for what a failure is told by.
    pub(crate) fn empty_string(&self, bytes: usize) -> String {
        let mut string = String::new();
        if string.try_reserve_exact(bytes).is_err() {
            self.use_reserve();
            string.reserve_exact(bytes);
        }
        string
    }
}
