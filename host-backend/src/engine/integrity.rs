//! Integrity of sealed frames: checksums, mirrors, and the repair of wrong frames.
//!
//! A frame gets the checksum of the copy that was made of a page, which the guest cannot write, so
//! nothing can change between the two. In a domain with a mirror a second frame takes a copy of it then.
//! A check compares content and checksum. Checked are every sealed page in turn by the scrubber, the
//! domains of failed requests soon after, and what an operator asks for.

use vmsrs_protocol::{PAGE_SIZE, ZERO_FRAME};

use super::changes::Differences;
use super::corruption::{Cause, Difference, Remedy};
use super::memory::Memory;
use super::store::{FrameState, Store};

/// What a check of a sealed page found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// The content is right, and so is the mirror's copy if the domain has a mirror.
    Whole,
    /// The content is right. The mirror's copy was missing or wrong and has been made.
    Mirrored,
    /// The content was wrong.
    Wrong {
        cause: Cause,
        remedy: Remedy,
        difference: Option<Difference>,
    },
    /// The content is known to be lost.
    Damaged,
}

/// Checks a sealed frame with an owner and repairs what can be repaired.
pub(crate) fn check(store: &mut Store, frame: u32, memory: &mut impl Memory) -> Finding {
    if store.frames.is_damaged(frame) {
        return Finding::Damaged;
    }
    let cause = match memory.checksum(frame) {
        Ok(sum) if sum == store.frames.checksum(frame) => {
            return match mirror(store, frame, memory) {
                true => Finding::Mirrored,
                false => Finding::Whole,
            };
        }
        Ok(_) => Cause::Checksum,
        Err(error) => {
            log::warn!("{error}: {}", error.source);
            Cause::Poison
        }
    };
    let copy = store
        .frames
        .mirror(frame)
        .filter(|&copy| is_right(store, frame, copy, memory));
    let difference = match (cause, copy) {
        (Cause::Checksum, Some(copy)) => difference(memory, copy, frame),
        _ => None,
    };
    let repaired = copy.is_some_and(|copy| {
        // Writing in place only turns wrong bytes right; broken memory must be replaced.
        let in_place = cause == Cause::Checksum
            && memory.copy(copy, frame).is_ok()
            && is_right(store, frame, frame, memory);
        in_place
            || (memory.replace(frame, Some(copy)).is_ok() && is_right(store, frame, frame, memory))
    });
    if !repaired {
        store.damage(frame);
    }
    Finding::Wrong {
        cause,
        remedy: match repaired {
            true => Remedy::Repaired,
            false => Remedy::Lost,
        },
        difference,
    }
}

/// Checks the frame that is always zeros. `None` when it is intact.
pub(crate) fn check_zero_frame(memory: &mut impl Memory) -> Option<(Cause, Remedy)> {
    let mut content = [0; PAGE_SIZE as usize];
    let cause = match memory.read_vault(ZERO_FRAME, &mut content) {
        Ok(()) if content == [0; PAGE_SIZE as usize] => return None,
        Ok(_) => Cause::Checksum,
        Err(_) => Cause::Poison,
    };
    let remedy = match memory.replace(ZERO_FRAME, None) {
        Ok(()) => Remedy::Repaired,
        Err(error) => {
            log::error!("{error}: {}", error.source);
            Remedy::Lost
        }
    };
    Some((cause, remedy))
}

/// How two frames differ; `None` if one of them cannot be read.
fn difference(memory: &impl Memory, right: u32, wrong: u32) -> Option<Difference> {
    let mut pages = [[0; PAGE_SIZE as usize]; 2];
    memory.read_vault(right, &mut pages[0]).ok()?;
    memory.read_vault(wrong, &mut pages[1]).ok()?;
    let found = Differences::new(&pages[0], &pages[1]);
    Some(Difference {
        bytes: found.count,
        first: found.first(),
    })
}

/// Whether `copy` has the content that `frame` should have.
fn is_right(store: &Store, frame: u32, copy: u32, memory: &impl Memory) -> bool {
    memory
        .checksum(copy)
        .is_ok_and(|sum| sum == store.frames.checksum(frame))
}

/// Makes sure that a right frame has a right copy, if its domain has a mirror and a frame is free; else
/// a later check does. True when a copy was made.
pub(crate) fn mirror(store: &mut Store, frame: u32, memory: &mut impl Memory) -> bool {
    let Some(owner) = store.frames.page(frame) else {
        return false;
    };
    if !store.is_mirrored(owner) {
        return false;
    }
    if let Some(copy) = store.frames.mirror(frame) {
        if is_right(store, frame, copy, memory) {
            return false;
        }
        // A copy that has changed lies in unreliable memory.
        return match memory.replace(copy, Some(frame)) {
            Ok(()) => true,
            Err(error) => {
                log::error!("{error}: {}", error.source);
                false
            }
        };
    }
    let Some(copy) = store.frames.take(FrameState::Mirror) else {
        return false;
    };
    // One that is broken gets other memory.
    let copied = memory
        .copy(frame, copy)
        .or_else(|_| memory.replace(copy, Some(frame)));
    match copied {
        Ok(()) => {
            store.frames.set_mirror(frame, copy);
            true
        }
        Err(error) => {
            log::warn!("{error}: {}", error.source);
            match error.frame == copy {
                true => store.set_aside(copy, FrameState::Mirror),
                // It is the page that cannot be read.
                false => store.frames.retire(copy, FrameState::Mirror),
            }
            false
        }
    }
}
