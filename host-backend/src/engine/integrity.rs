//! Integrity of sealed frames: checksums, mirrors, and the repair of wrong frames.
//!
//! A frame gets its checksum when it is sealed, after the guest has lost the right to write it, so
//! nothing can change between the two. In a domain with a mirror a second frame takes a copy then.
//! A check compares content and checksum. Checked are every sealed page in turn by the scrubber, the
//! pages that a failed request goes back to, and what an operator asks for.

use vmsrs_protocol::{PAGE_SIZE, ZERO_FRAME};

use super::changes;
use super::content::{Content, checksum};
use super::corruption::{Cause, Difference, Remedy};
use super::protection::Inspect;
use super::store::{FrameState, PageOf, Store};

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

/// Takes the checksum of a frame that was just sealed and protected, and a copy if its domain has a
/// mirror. False when its content cannot be read: then the page is damaged.
pub(crate) fn take_in(store: &mut Store, frame: u32, memory: &mut impl Content) -> bool {
    match memory.checksum(frame) {
        Ok(sum) => {
            store.frames.set_checksum(frame, sum);
            mirror(store, frame, memory);
            true
        }
        Err(error) => {
            log::error!("{error}: {}", error.source);
            store.damage(frame);
            false
        }
    }
}

/// Checks a sealed frame with an owner and repairs what can be repaired.
pub(crate) fn check(
    store: &mut Store,
    frame: u32,
    memory: &mut (impl Content + Inspect),
) -> Finding {
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
        (Cause::Checksum, Some(copy)) => Some(difference(memory, copy, frame)),
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
pub(crate) fn check_zero_frame(memory: &mut impl Content) -> Option<(Cause, Remedy)> {
    let zeros = checksum(&[0; PAGE_SIZE as usize]);
    let cause = match memory.checksum(ZERO_FRAME) {
        Ok(sum) if sum == zeros => return None,
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

fn difference(memory: &impl Inspect, right: u32, wrong: u32) -> Difference {
    let mut pages = [[0; PAGE_SIZE as usize]; 2];
    memory.read(right, &mut pages[0]);
    memory.read(wrong, &mut pages[1]);
    let (bytes, first) = changes::count(&pages[0], &pages[1]);
    Difference { bytes, first }
}

/// Whether `copy` has the content that `frame` should have.
fn is_right(store: &Store, frame: u32, copy: u32, memory: &impl Content) -> bool {
    memory
        .checksum(copy)
        .is_ok_and(|sum| sum == store.frames.checksum(frame))
}

/// Makes sure that a right frame has a right copy, if its domain has a mirror and a frame is free; else
/// a later check does. True when a copy was made.
fn mirror(store: &mut Store, frame: u32, memory: &mut impl Content) -> bool {
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
    let Some(copy) = take_free(store, owner) else {
        return false;
    };
    match memory.copy(frame, copy) {
        Ok(()) => {
            store.frames.set_mirror(frame, copy);
            true
        }
        Err(error) => {
            // The cleanser replaces the frame's memory.
            log::warn!("{error}: {}", error.source);
            store.retire(copy);
            false
        }
    }
}

/// Takes a free frame for a copy of a page.
fn take_free(store: &mut Store, owner: PageOf) -> Option<u32> {
    let run = store.free.take(1, 1).pop()?;
    store.frames.set(run.start, FrameState::Mirror);
    debug_assert!(store.is_mirrored(owner));
    Some(run.start)
}
