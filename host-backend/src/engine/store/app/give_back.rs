//! What a domain gives back: extents with their addresses, and its number.

use vmsrs_protocol::control::Extent;
use vmsrs_protocol::{EXTENT_UNIT_PAGES, NONE};

use super::{App, Domain, NO_OWNER, Unit};

impl App {
    /// Gives back the extents of an existing domain from number `keep` on; their sealed frames are forgotten. Returns how many
    /// pages they had.
    pub(crate) fn remove_extents(&mut self, domain: u32, keep: u32) -> u32 {
        let removed: Vec<Extent> = self.extents_from(domain, keep).collect();
        if keep == 0 {
            self.domains[domain as usize].first = Extent::default();
        }
        if let Some(more) = self.more.get_mut(&domain) {
            self.more_capacity -= more.capacity();
            more.truncate(keep.saturating_sub(1) as usize);
            more.shrink_to_fit();
            self.more_capacity += more.capacity();
            if more.is_empty() {
                self.more.remove(&domain);
            }
        }
        let mut pages = 0;
        for extent in removed {
            self.remove_units(domain, extent);
            pages += extent.pages;
        }
        pages
    }

    fn remove_units(&mut self, domain: u32, extent: Extent) {
        let start = extent.page / EXTENT_UNIT_PAGES;
        let end = start + extent.pages / EXTENT_UNIT_PAGES;
        let placed: Vec<u32> = self
            .places
            .placed(start, end)
            .map(|(_, place)| place)
            .collect();
        for place in placed {
            let unit = &mut self.units[place as usize];
            let sealed = unit.frames.iter().filter(|&&frame| frame != NONE).count();
            *unit = Unit {
                owner: NO_OWNER,
                frames: [NONE; EXTENT_UNIT_PAGES as usize],
            };
            self.free_units.push(place);
            // At most as many as a unit has pages.
            self.domains[domain as usize].sealed -= sealed as u32;
            self.sealed -= sealed as u32;
        }
        self.places.take_away(start, end);
        let (places, len) = (&self.places, self.places.len());
        let has_owner = |unit: u32| unit >= len || places.has_owner(unit);
        let (start, end) = self.gaps.give_back(start, end, has_owner);
        if end == len {
            self.gaps.cut(start);
            self.places.truncate(start);
        }
    }

    /// Removes an existing domain without extents. Its number may be had again when the driver says so, or after a reset.
    pub(crate) fn remove_domain(&mut self, domain: u32) {
        self.keys.remove(domain);
        self.damaged.remove(&domain);
        self.clear_mirrored(domain);
        self.domains[domain as usize] = Domain::DEAD;
        self.dead.insert(domain);
        self.has_deleted = true;
    }

    /// From here on nobody in the guest knows the numbers of deleted domains.
    pub(crate) fn free_numbers(&mut self) {
        let mut dead: Vec<u32> = self.dead.drain().collect();
        // The lowest is used first.
        dead.sort_unstable_by(|one, other| other.cmp(one));
        self.free.extend(dead);
    }

    /// A number of a deleted domain for another one: `wanted` if it is one, else any that may be had.
    pub(super) fn take_number(&mut self, wanted: u32) -> Option<u32> {
        match self.dead.remove(&wanted) {
            true => Some(wanted),
            false => self.free.pop(),
        }
    }

    /// Whether a domain of the app was ever deleted: what the driver says of a domain may be late then.
    pub(crate) fn has_deleted(&self) -> bool {
        self.has_deleted
    }

    /// Panics when what was given back is not what no domain has.
    #[cfg(test)]
    pub(crate) fn check_given_back(&self) {
        let units = self.places.len();
        let has_owner = |unit: u32| self.places.has_owner(unit);
        self.gaps.check(units, has_owner);
        assert!(units == 0 || has_owner(units - 1));
        let used = self.places.placed(0, units).count();
        assert_eq!(used + self.free_units.len(), self.units.len());
        let owned = (0..units).filter(|&unit| has_owner(unit)).count();
        assert_eq!(owned as u32 * EXTENT_UNIT_PAGES, self.pages());
        for &unit in &self.free_units {
            assert_eq!(self.units[unit as usize].owner(), NO_OWNER);
        }
        for domain in self.dead.iter().chain(&self.free) {
            assert!(!self.has_domain(*domain) && self.key(*domain).is_none());
        }
    }
}
