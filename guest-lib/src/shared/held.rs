//! The list of domains that a thread holds or is about to lock, in its control block.
//!
//! The driver reads it when the thread has died or its request is failed, between any two of the
//! stores here. What must be true then: every domain whose lock word has the request's tag is on the
//! list. So an entry is whole before the count covers it, and an entry in the middle goes by copying
//! the later ones down before the count falls: some are listed twice meanwhile, none is missing.
//!
//! `tests/loom` builds this file too, and looks at the list after every store.

use vmsrs_protocol::shared::HELD_MAX;

/// The part of a control block with the list. Its methods are single accesses, in program order.
pub(crate) trait HeldList {
    /// Entries in use, as stored.
    fn count(&self) -> u32;
    /// Stores the number of entries in use.
    fn set_count(&self, count: u32);
    /// An entry; `place` is below [`HELD_MAX`].
    fn entry(&self, place: usize) -> u32;
    /// Stores an entry; `place` is below [`HELD_MAX`].
    fn set_entry(&self, place: usize, domain: u32);
}

/// Entries in use, whatever stray writes have made of the count.
pub(crate) fn len(list: &impl HeldList) -> usize {
    (list.count() as usize).min(HELD_MAX)
}

/// Enters a domain; false if the list is full.
pub(crate) fn push(list: &impl HeldList, domain: u32) -> bool {
    let count = len(list);
    if count == HELD_MAX {
        return false;
    }
    list.set_entry(count, domain);
    list.set_count(count as u32 + 1);
    true
}

/// Removes a domain, if it is on the list.
pub(crate) fn remove(list: &impl HeldList, domain: u32) {
    let count = len(list);
    let Some(place) = (0..count).find(|&place| list.entry(place) == domain) else {
        return;
    };
    for place in place..count - 1 {
        list.set_entry(place, list.entry(place + 1));
    }
    list.set_count(count as u32 - 1);
}
