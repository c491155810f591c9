//! How a heap gets more extents.

use super::layout::{
    BLOCK_HEADER, EXTENTS_MAX, LargeHeader, MAPS_PER_PAGE, PLAIN_PAGES, levels_bytes,
};
use super::{Damage, Heap, PAGE};
use vmsrs_protocol::{EXTENT_MAX_PAGES, EXTENT_UNIT_PAGES};

/// Where there is no room for an extent, one that is so much smaller is tried next.
const SMALLER: u32 = 8;

/// Fewest pages of an extent that has a room of `bytes`; `None` if none has.
fn least_for(bytes: usize) -> Option<u32> {
    let pages = |bytes: usize| (bytes + BLOCK_HEADER).div_ceil(PAGE - MAPS_PER_PAGE);
    let mut least = pages(bytes);
    if least > PLAIN_PAGES {
        // The levels of the bitmaps need pages too, and these have levels.
        let levels = 2 * levels_bytes(least + least / 1024 + 1);
        least = pages(bytes + size_of::<LargeHeader>() + levels);
    }
    let least = u32::try_from(least).ok();
    least.filter(|&least| least <= EXTENT_MAX_PAGES)
}

/// Pages of the next extent of a domain that has `total`, if the window has room for it: by what there is, so that small domains
/// stay small and extents are few; from some size on by a quarter, since other domains need the window too.
fn usual(total: u32) -> u32 {
    total.min((PLAIN_PAGES as u32).max(total / 4))
}

impl Heap {
    /// Makes the heap larger, so that there is a room of at least `bytes`. False when there is no
    /// memory.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<bool, Damage> {
        let Some(least) = least_for(bytes) else {
            return Ok(false);
        };
        loop {
            let index = self.extents().len();
            if index >= EXTENTS_MAX {
                return Ok(false);
            }
            let total = self.extents().iter().map(|extent| extent.pages).sum();
            let mut wanted = least.max(usual(total));
            let extent = loop {
                let pages = wanted.next_multiple_of(EXTENT_UNIT_PAGES);
                match self.backend.extent(self.domain, index as u32, pages) {
                    Ok(extent) => break extent,
                    Err(_) if wanted == least => return Ok(false),
                    // A nearly full window may still have room for less.
                    Err(_) => wanted = least.max(wanted / SMALLER),
                }
            };
            self.add_extent(index, extent)?;
            // An extent left by a failed request may be smaller than what was asked for.
            if extent.pages >= least {
                return Ok(true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::GRAIN;
    use super::super::span::Span;
    use super::*;
    use vmsrs_protocol::control::Extent;
    use vmsrs_protocol::{APP_BASE, APP_PAGES};

    #[test]
    fn extents_have_the_room_that_they_are_made_for() {
        let sizes = (0..40).flat_map(|log| [1 << log, (1 << log) + (1 << log) / 3]);
        for bytes in sizes.map(|size: usize| size.next_multiple_of(GRAIN)) {
            let pages = least_for(bytes).unwrap();
            let extent = Extent { page: 0, pages };
            let span = Span::new(APP_BASE, 1, extent);
            let room = span.end() - span.first() - BLOCK_HEADER as u64;
            assert!(room >= bytes as u64, "{bytes}");
            assert!(
                room <= bytes as u64 + bytes as u64 / 4096 + 2 * PAGE as u64,
                "{bytes}"
            );
        }
        assert_eq!(least_for(1 << 40), None);
    }

    #[test]
    fn extents_suffice_for_all_addresses() {
        let (mut total, mut extents) = (EXTENT_UNIT_PAGES, 1);
        while total < APP_PAGES {
            total += usual(total).next_multiple_of(EXTENT_UNIT_PAGES);
            extents += 1;
        }
        assert!(extents < EXTENTS_MAX * 2 / 3, "{extents}");
    }
}
