//! Blocks of an arena that are checked as their request ends: before each is a header, and behind it a red zone.

use super::{Arena, Level};
use crate::heap::layout::RED;
use crate::state::check::check_word;
use std::ptr::NonNull;

/// What headers begin at, and red zones end at.
const GRAIN: usize = 16;

/// Least bytes of a red zone.
const ZONE: usize = 16;

/// Before a block.
#[derive(Clone, Copy)]
#[repr(C)]
struct Header {
    /// Where the block ends.
    end: usize,
    check: u64,
}

/// Where the header is that follows a block that ends there.
fn next(end: usize) -> Option<usize> {
    end.checked_add(ZONE)?.checked_next_multiple_of(GRAIN)
}

impl Arena {
    /// From here on blocks are checked. The arena counts as used, so that its end is not passed over.
    pub(crate) fn check_blocks(&self) {
        self.reset();
        let Level { low, high } = self.level();
        let first = low.next_multiple_of(GRAIN) + GRAIN;
        if self.take_to(first, high).is_some() {
            self.checked.set(Some(first));
        }
    }

    /// Whether they are.
    pub(crate) fn checks_blocks(&self) -> bool {
        self.checked.get().is_some()
    }

    #[inline(never)]
    pub(super) fn allocate_checked(&self, size: usize, alignment: usize) -> Option<NonNull<u8>> {
        let Level { low, high } = self.level();
        let start = (low + size_of::<Header>()).next_multiple_of(alignment.max(GRAIN));
        let end = start.checked_add(size)?;
        let next = next(end)?;
        self.take_to(next, high)?;
        let check = check_word(low as u64, [end as u64]);
        // SAFETY: fresh memory of the arena, up to where it is in use now.
        unsafe {
            self.at(low).cast::<Header>().write(Header { end, check });
            self.at(end).write_bytes(RED, next - end);
        }
        NonNull::new(self.at(start))
    }

    /// The address of the first header or red zone that was overwritten.
    pub(crate) fn find_damage(&self) -> Option<u64> {
        let mut place = self.checked.get()?;
        let low = self.low.get();
        while place < low {
            // SAFETY: headers begin at grains inside the arena.
            let header = unsafe { self.at(place).cast::<Header>().read() };
            let is_whole = header.check == check_word(place as u64, [header.end as u64]);
            let next = next(header.end).filter(|&next| is_whole && next > place && next <= low);
            let Some(next) = next else {
                return Some(self.at(place) as u64);
            };
            let zone = header.end..next;
            // SAFETY: inside the arena, by the comparison.
            let is_red = |&offset: &usize| unsafe { self.at(offset).read() } == RED;
            if let Some(offset) = zone.into_iter().find(|offset| !is_red(offset)) {
                return Some(self.at(offset) as u64);
            }
            place = next;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_past_a_block_and_to_its_header_are_found() {
        let arena = Arena::new().unwrap();
        for (size, alignment) in [(0, 1), (1, 16), (15, 16), (16, 64), (100, 4096), (5000, 16)] {
            arena.check_blocks();
            let blocks = [(); 3].map(|()| arena.allocate(size, alignment).unwrap().as_ptr());
            for block in blocks {
                assert!(block.addr().is_multiple_of(alignment));
                // SAFETY: the block.
                unsafe { block.write_bytes(7, size) };
            }
            arena.input(&[1, 2, 3]).unwrap();
            assert_eq!(arena.find_damage(), None);
            for (from, to) in [(size, size + ZONE), (0usize.wrapping_sub(8), 0)] {
                for block in blocks {
                    let mut at = from;
                    while at != to && alignment <= GRAIN {
                        let byte = block.wrapping_add(at);
                        // SAFETY: what is around the block; the damage is the test.
                        unsafe { *byte ^= 1 };
                        assert!(arena.find_damage().is_some(), "{size}: {at:#x}");
                        // SAFETY: as above.
                        unsafe { *byte ^= 1 };
                        at = at.wrapping_add(1);
                    }
                }
            }
            assert_eq!(arena.find_damage(), None);
            arena.reset();
            assert!(!arena.checks_blocks() && arena.used() == 0);
        }
    }
}
