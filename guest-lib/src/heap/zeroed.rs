//! Blocks of which it is known what is zero, and large ones that are cleared and copied only where that changes something: a page
//! that is not written costs the request nothing but a look.

use super::{Damage, Heap, LARGE, PAGE, first_other};
use std::ops::Range;
use std::ptr::NonNull;
use vmsrs_protocol::control::Extent;

/// A block that was just taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) block: NonNull<u8>,
    /// How many of its first bytes may not be 0.
    used: usize,
}

/// The parts of `length` bytes at an address that lie in one page each: where they begin, and how long they are.
fn pages(address: usize, length: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let from = at;
        let to_next = PAGE - (address + from) % PAGE;
        at = length.min(from + to_next);
        (from < length).then_some((from, at - from))
    })
}

/// Whether all are 0.
fn is_zero(bytes: &[u8]) -> bool {
    first_other(bytes, 0).is_none()
}

impl Heap {
    /// Like [`Heap::allocate`]; it is known then which part of the block is 0.
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) fn allocate_known(
        &mut self,
        first: Extent,
        size: usize,
        alignment: usize,
    ) -> Result<Option<Taken>, Damage> {
        let taken = self.take(first, size, alignment)?;
        Ok(taken.map(|(block, fresh)| {
            let used = fresh.saturating_sub(block.as_ptr() as u64);
            Taken {
                block,
                used: used.min(size as u64) as usize,
            }
        }))
    }
}

impl Taken {
    /// Where its first `size` bytes are 0 without being looked at: nothing that is committed was ever written there. What the
    /// running request has written there is damage.
    pub(crate) fn unseen(&self, size: usize) -> Option<Range<u64>> {
        let address = self.block.as_ptr() as u64;
        let is_any = size >= LARGE && self.used < size;
        is_any.then(|| address + self.used as u64..address + size as u64)
    }

    /// Makes its first `size` bytes 0.
    ///
    /// # Safety
    ///
    /// The block has that many, is the caller's, and has not been written yet; [`Taken::unseen`] is 0.
    pub(crate) unsafe fn clear(self, size: usize) {
        if size < LARGE {
            // SAFETY: by the function's contract.
            unsafe { self.block.write_bytes(0, size) };
            return;
        }
        let used = self.used.min(size);
        for (from, length) in pages(self.block.as_ptr() as usize, used) {
            // SAFETY: by the function's contract.
            unsafe {
                let place = self.block.add(from);
                if !is_zero(NonNull::slice_from_raw_parts(place, length).as_ref()) {
                    place.write_bytes(0, length);
                }
            }
        }
    }

    /// Copies `size` bytes of another block to its beginning.
    ///
    /// # Safety
    ///
    /// Both have that many, and nobody else uses them meanwhile. This one has not been written yet; [`Taken::unseen`] is 0.
    pub(crate) unsafe fn copy(self, other: NonNull<u8>, size: usize) {
        if size < LARGE {
            // SAFETY: by the function's contract.
            unsafe { self.block.copy_from_nonoverlapping(other, size) };
            return;
        }
        for (from, length) in pages(self.block.as_ptr() as usize, size) {
            // SAFETY: by the function's contract.
            unsafe {
                let (place, other) = (self.block.add(from), other.add(from));
                let bytes = |place| NonNull::slice_from_raw_parts(place, length);
                let is_there = is_zero(bytes(other).as_ref())
                    && (from >= self.used || is_zero(bytes(place).as_ref()));
                if !is_there {
                    place.copy_from_nonoverlapping(other, length);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_in_one_page_each() {
        for (address, length) in [
            (0, 1),
            (0, PAGE),
            (16, 3 * PAGE),
            (PAGE - 1, 2),
            (PAGE - 16, 0),
        ] {
            let mut next = 0;
            for (from, length) in pages(address, length) {
                assert_eq!(from, next);
                assert!(
                    length > 0 && (address + from) / PAGE == (address + from + length - 1) / PAGE
                );
                next = from + length;
            }
            assert_eq!(next, length);
        }
    }
}
