//! The list of pages that a thread's request has written, which the driver keeps.

use crate::shared::pkru;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};
use vmsrs_protocol::shared::{WRITTEN_MAX, WrittenPages};

/// The list of a registered thread.
///
/// The process cannot write it. All accesses are volatile: the driver adds a page in any write of the thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written(NonNull<WrittenPages>);

impl Written {
    /// # Safety
    ///
    /// The list stays mapped while this or a copy of it is used.
    pub(crate) unsafe fn new(list: NonNull<WrittenPages>) -> Self {
        Self(list)
    }

    pub(crate) fn list(self) -> NonNull<WrittenPages> {
        self.0
    }

    #[inline]
    fn read<T: Copy>(self, field: impl FnOnce(*const WrittenPages) -> *const T) -> T {
        compiler_fence(Ordering::SeqCst);
        // SAFETY: a field of a list that is mapped by new()'s contract.
        unsafe { field(self.0.as_ptr()).read_volatile() }
    }

    /// Drafts that the thread has made in the request with that tag, since the last commit or discard of all
    /// of them. The first [`WRITTEN_MAX`] are listed.
    #[inline]
    pub(crate) fn count(self, tag: u64) -> usize {
        // SAFETY: the pointer is valid; only the field's address is taken.
        let count = self.read(|list| unsafe { &raw const (*list).count });
        // SAFETY: as above.
        if count != 0 && self.read(|list| unsafe { &raw const (*list).tag }) == tag {
            count as usize
        } else {
            0
        }
    }

    /// [`Written::count`] is not 0, or the thread is inside a hot domain.
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    pub(crate) fn is_any(self, tag: u64) -> bool {
        const { assert!(std::mem::offset_of!(WrittenPages, count).is_multiple_of(8)) };
        // Both at once, since mostly they are 0.
        // SAFETY: as in count(); two fields of four bytes, aligned to eight.
        let both = self.read(|list| unsafe { (&raw const (*list).count).cast::<u64>() });
        both != 0 && (self.count(tag) != 0 || self.is_inside_hot())
    }

    /// Whether the calling thread is inside a hot domain: it may write with the key of one.
    pub(crate) fn is_inside_hot(self) -> bool {
        // SAFETY: as in count().
        match self.read(|list| unsafe { &raw const (*list).hot_keys }) {
            0 => false,
            keys => pkru::may_write(keys),
        }
    }

    /// A page of the list.
    #[inline]
    pub(crate) fn page(self, place: usize) -> u32 {
        // SAFETY: as in count().
        let pages = unsafe { &raw const (*self.0.as_ptr()).pages };
        self.read(|_| pages.cast::<u32>().wrapping_add(place.min(WRITTEN_MAX - 1)))
    }
}
