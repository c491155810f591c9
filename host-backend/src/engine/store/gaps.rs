//! Address ranges of an app that were given back, for later extents.
//!
//! A gap is a row of units without an owner between two that have one, or before the first. A gap of one unit is the guard
//! between two domains, and is not kept here. An extent in a gap leaves a unit free on either side of it, unless it begins
//! the app's addresses.

use std::collections::{BTreeMap, BTreeSet};

/// Gaps that are looked at for one that is large enough and lies high enough.
const LOOKS: usize = 64;

/// The gaps of more than one unit.
#[derive(Default)]
pub(super) struct Gaps {
    /// Their ends by their starts.
    ends: BTreeMap<u32, u32>,
    /// Those with room for an extent: that room, and their starts.
    rooms: BTreeSet<(u32, u32)>,
}

/// The first unit of a gap that an extent can have.
fn first(start: u32) -> u32 {
    match start {
        0 => 0,
        _ => start + 1,
    }
}

/// Units of a gap that an extent can have.
fn room(start: u32, end: u32) -> u32 {
    (end - 1).saturating_sub(first(start))
}

impl Gaps {
    fn add(&mut self, start: u32, end: u32) {
        if end - start < 2 {
            return;
        }
        self.ends.insert(start, end);
        if room(start, end) > 0 {
            self.rooms.insert((room(start, end), start));
        }
    }

    fn remove(&mut self, start: u32) -> Option<u32> {
        let end = self.ends.remove(&start)?;
        self.rooms.remove(&(room(start, end), start));
        Some(end)
    }

    /// Takes room for an extent of `count` units, none of them below `least`. Returns its first unit.
    pub(super) fn take(&mut self, count: u32, least: u32) -> Option<u32> {
        let mut large = self.rooms.range((count, 0)..).take(LOOKS);
        let &(_, start) = large.find(|(_, start)| first(*start) >= least)?;
        let end = self.remove(start)?;
        let taken = first(start);
        self.add(taken + count, end);
        Some(taken)
    }

    /// Adds the units from `start` to `end`, which have lost their owner; `has_owner` tells of their neighbours. Returns where
    /// the gap that they are a part of begins and ends.
    pub(super) fn give_back(
        &mut self,
        mut start: u32,
        mut end: u32,
        has_owner: impl Fn(u32) -> bool,
    ) -> (u32, u32) {
        let below = self.ends.range(..start).next_back();
        if let Some((&begin, _)) = below.filter(|&(_, &to)| to == start) {
            self.remove(begin);
            start = begin;
        } else if start > 0 && !has_owner(start - 1) {
            start -= 1;
        }
        if let Some(to) = self.remove(end) {
            end = to;
        } else if !has_owner(end) {
            end += 1;
        }
        self.add(start, end);
        (start, end)
    }

    /// The last gap lies after all units with an owner: it is none.
    pub(super) fn cut(&mut self, start: u32) {
        self.remove(start);
    }

    /// Bytes of host memory in use, about.
    pub(super) fn bytes(&self) -> usize {
        (self.ends.len() + self.rooms.len()) * 2 * size_of::<(u32, u32)>()
    }

    /// Panics when a gap is not what the owners of units say.
    #[cfg(test)]
    pub(super) fn check(&self, units: u32, has_owner: impl Fn(u32) -> bool) {
        let mut found = Self::default();
        let mut start = 0;
        for unit in 0..units {
            if has_owner(unit) {
                found.add(start, unit);
                start = unit + 1;
            }
        }
        assert_eq!((&found.ends, &found.rooms), (&self.ends, &self.rooms));
    }
}
