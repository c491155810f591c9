//! What a domain's lock protects.

use loom::cell::UnsafeCell;

/// Data that only the lock's holder may touch: loom ends the test when two threads do so without
/// the lock ordering their accesses.
#[derive(Default)]
pub struct Protected(UnsafeCell<u64>);

// SAFETY: that only one thread has access at a time is what the models show; loom checks it.
unsafe impl Sync for Protected {}
// SAFETY: a number.
unsafe impl Send for Protected {}

impl Protected {
    /// Changes the data, as the holder of the lock.
    pub fn touch(&self) {
        // SAFETY: loom checks that no other thread has the pointer now.
        self.0.with_mut(|data| unsafe { *data += 1 });
    }

    /// How often it was changed, as the holder of the lock.
    pub fn count(&self) -> u64 {
        // SAFETY: as in touch().
        self.0.with(|data| unsafe { *data })
    }
}
