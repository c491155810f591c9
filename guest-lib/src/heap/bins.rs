//! Lists of free room by size: two-level segregated fit (Masmano, Ripoll, Crespo, Real: TLSF,
//! a new dynamic memory allocator for real-time systems, ECRTS 2004).
//!
//! Rooms below [`EXACT`] grains have a list for each size. Above, each power of two is divided into
//! [`STEPS`] lists. A map says which lists are not empty, so a search takes a bounded number of steps.

use vmsrs_protocol::EXTENT_MAX_PAGES;
use vmsrs_protocol::PAGE_SIZE;
use vmsrs_protocol::heap::GRAIN;

/// Below this many grains each list has rooms of one size only.
const EXACT: usize = 16;
/// Lists per power of two, and the logarithm of that.
const STEPS: usize = 1 << STEPS_LOG;
const STEPS_LOG: u32 = 3;
/// Logarithm of [`EXACT`].
const EXACT_LOG: u32 = EXACT.trailing_zeros();

/// Size of the largest room, in grains.
const GRAINS_MAX: usize = EXTENT_MAX_PAGES as usize * PAGE_SIZE as usize / GRAIN;

/// Number of lists.
pub(crate) const COUNT: usize = list_of(GRAINS_MAX) + 1;

const WORDS: usize = COUNT.div_ceil(64);

/// Lists that are looked at together.
const GROUP: usize = 8;

/// The lists' heads, and the map.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Bins {
    map: [u64; WORDS],
    /// Address of the first room's bytes in each list, or 0.
    heads: [u64; COUNT],
}

/// The list that a room of that many grains is in.
pub(crate) const fn list_of(grains: usize) -> usize {
    if grains < EXACT {
        return grains;
    }
    let log = grains.ilog2();
    let step = (grains >> (log - STEPS_LOG)) & (STEPS - 1);
    EXACT + (log - EXACT_LOG) as usize * STEPS + step
}

/// The first list whose rooms all have at least that many grains.
pub(super) fn list_for(grains: usize) -> usize {
    if grains < EXACT {
        return grains;
    }
    list_of(grains + (1 << (grains.ilog2() - STEPS_LOG)) - 1)
}

impl Bins {
    /// The first list from `list` on that is not empty, and its head.
    pub(super) fn first_from(&self, list: usize) -> Option<(usize, u64)> {
        let mut word = list / 64;
        let mut bits = self.map.get(word)? & (u64::MAX << (list % 64));
        while bits == 0 {
            word += 1;
            bits = *self.map.get(word)?;
        }
        let found = word * 64 + bits.trailing_zeros() as usize;
        Some((found, *self.heads.get(found)?))
    }

    pub(super) fn head(&self, list: usize) -> u64 {
        self.heads.get(list).copied().unwrap_or(0)
    }

    pub(super) fn set_head(&mut self, list: usize, address: u64) {
        let Some(head) = self.heads.get_mut(list) else {
            return;
        };
        *head = address;
        let bit = 1 << (list % 64);
        if address == 0 {
            self.map[list / 64] &= !bit;
        } else {
            self.map[list / 64] |= bit;
        }
    }

    /// The lists that are not empty; `None` if the map and the heads do not agree.
    pub(super) fn lists(&self) -> Option<impl Iterator<Item = usize>> {
        let bits_of = |heads: &[u64]| {
            let bits = heads.iter().enumerate();
            bits.fold(0, |word, (bit, &head)| word | u64::from(head != 0) << bit)
        };
        let bits = |heads: &[u64]| {
            // Most lists are empty, and so are whole groups of them.
            let (groups, rest) = heads.as_chunks::<GROUP>();
            let last = bits_of(rest).wrapping_shl((groups.len() * GROUP) as u32);
            let groups = groups.iter().enumerate();
            let groups =
                groups.filter(|(_, heads)| heads.iter().fold(0, |all, head| all | head) != 0);
            groups.fold(last, |word, (group, heads)| {
                word | bits_of(heads) << (group * GROUP)
            })
        };
        if !self.heads.chunks(64).map(bits).eq(self.map) {
            return None;
        }
        let map = self.map.into_iter().enumerate();
        Some(map.flat_map(|(word, mut bits)| {
            std::iter::from_fn(move || {
                let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
                bits &= bits - 1;
                Some(word * 64 + bit)
            })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_ordered_by_size() {
        let mut highest = 0;
        for grains in 1..=GRAINS_MAX {
            let list = list_of(grains);
            assert!(list == highest || list == highest + 1);
            highest = list;
        }
        assert_eq!(highest, COUNT - 1);
        for grains in (1..5000).chain(GRAINS_MAX / 2 - 2000..GRAINS_MAX / 2 + 2000) {
            let list = list_for(grains);
            assert!(list >= list_of(grains));
            let smaller = (1..grains).rev().take(1000);
            assert!(smaller.map(list_of).all(|other| other < list), "{grains}");
        }
    }
}
