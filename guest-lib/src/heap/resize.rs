//! Large blocks that become longer or shorter in their place.

use super::layout::{BLOCK_HEADER, GRAIN, POISON_MAX, RED, State, with_red_zone};
use super::room::{check_fill, fill};
use super::{Chunk, Damage, Heap, LARGE, SIZE_MAX};

const STEP: u64 = GRAIN as u64;

impl Heap {
    /// Gives a block another size in its place if it is or will be a large one, by means of the free room after it. False if
    /// that is not possible.
    pub(super) fn stretch(&mut self, mut block: Chunk, size: usize) -> Result<bool, Damage> {
        if size > SIZE_MAX || block.header.size().max(size) < LARGE {
            return Ok(false);
        }
        let (span, header) = (block.span, BLOCK_HEADER as u64);
        let after = match block.end() {
            end if end == span.end() => None,
            end => Some(Self::chunk(span, end + header)?),
        };
        let after = after.filter(|after| after.state == State::Free);
        let end = after.map_or(block.end(), |after| after.end());
        let wanted = block.address + with_red_zone(size) as u64;
        if wanted > end {
            return Ok(false);
        }
        block.check_red_zone()?;
        // What is left over is nothing, or has room for a header and links.
        let is_rest = end - wanted >= 2 * STEP;
        let stop = if is_rest { wanted } else { end };
        let taken = stop + if is_rest { header + STEP } else { 0 };
        if let Some(after) = after {
            let from = block.end();
            check_fill(span, from, taken.min(end))?;
            self.unlink(&after)?;
            span.starts().clear(after.address);
            span.fills().clear_range(from, taken.min(end));
        }
        span.touch(stop)?;
        let old = block.end();
        block.mark(size, (stop - block.address) as usize, State::Live);
        block.red_zone().fill(RED);
        if is_rest {
            let rest = stop + header;
            self.make_room(span, rest, (end - rest) as usize)?;
            // What was the block's is poisoned as if it had been freed.
            let from = rest + STEP;
            if from < old {
                fill(span, from, old.min(from + POISON_MAX as u64));
            }
        }
        Ok(true)
    }
}
