//! Memory that is kept ready for what a failure is told by, should a failed request have left none.

use super::Thread;
use std::alloc::{Layout, alloc, dealloc};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// It is given back to the heap when there is none, so it is larger than what is needed then.
const SIZE: Layout = Layout::new::<[u64; 2048]>();

/// Null after it was needed.
static RESERVE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

/// A block that is given back at once.
struct Block(*mut u8, Layout);

impl Block {
    fn new(layout: Layout) -> Self {
        // SAFETY: not of size 0.
        Self(unsafe { alloc(layout) }, layout)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made in new().
            unsafe { dealloc(self.0, self.1) };
        }
    }
}

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
        drop(Block(block, SIZE));
    }
    !block.is_null()
}

impl Thread {
    /// Makes sure that the heap, which works, has room for what is `needed`, unless the reserve was used up before.
    pub(crate) fn prepare_heap(&self, needed: [Layout; 3]) {
        let blocks = needed.map(Block::new);
        if blocks.iter().any(|block| block.0.is_null()) {
            let reserve = RESERVE.swap(ptr::null_mut(), Ordering::AcqRel);
            drop((blocks, Block(reserve, SIZE)));
            // As the thread's next request begins, there may be memory.
            self.look_next();
        }
    }
}
