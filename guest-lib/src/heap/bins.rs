//! Lists of free room by size: two-level segregated fit (Masmano, Ripoll, Crespo, Real: TLSF,
//! a new dynamic memory allocator for real-time systems, ECRTS 2004).
//!
//! Rooms below [`EXACT`] grains have a list for each size. Above, each power of two is divided into
//! [`STEPS`] lists, up to [`COARSE`] grains: of what is larger there is little. A map says which lists are not empty, so a search takes a bounded number of steps.

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

/// From this many grains on (4 MiB) each power of two has one list.
const COARSE: usize = 1 << COARSE_LOG;
const COARSE_LOG: u32 = 18;

/// Size of the largest room, in grains.
const GRAINS_MAX: usize = EXTENT_MAX_PAGES as usize * PAGE_SIZE as usize / GRAIN;

/// Number of lists.
pub(crate) const COUNT: usize = list_of(GRAINS_MAX) + 1;

const WORDS: usize = COUNT.div_ceil(64);

/// Lists that are looked at together, a byte of the map; a word of it has as many bytes.
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
    if grains >= COARSE {
        return list_of(COARSE - 1) + 1 + (log - COARSE_LOG) as usize;
    }
    let step = (grains >> (log - STEPS_LOG)) & (STEPS - 1);
    EXACT + (log - EXACT_LOG) as usize * STEPS + step
}

/// The first list whose rooms all have at least that many grains.
pub(super) fn list_for(grains: usize) -> usize {
    if grains < EXACT {
        return grains;
    }
    let log = grains.ilog2();
    let step = if grains < COARSE {
        log - STEPS_LOG
    } else {
        log
    };
    list_of(grains + (1 << step) - 1)
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

    /// The lists that are not empty by the map; `None` if others have a head. That these have one is not checked.
    pub(super) fn lists(&self) -> Option<impl Iterator<Item = usize>> {
        let of_group = |group: usize| self.map[group / GROUP] >> (group % GROUP * GROUP);
        let unlisted = |bits: u64, heads: &[u64]| {
            let heads = heads.iter().enumerate();
            heads.fold(0, |all, (bit, head)| {
                all | if bits >> bit & 1 == 0 { *head } else { 0 }
            })
        };
        let (groups, rest) = self.heads.as_chunks::<GROUP>();
        let mut found = unlisted(of_group(groups.len()), rest);
        for (group, heads) in groups.iter().enumerate() {
            // Most lists are empty, and so are whole groups of them.
            found |= match of_group(group) as u8 {
                0 => heads.iter().fold(0, |all, head| all | head),
                bits => unlisted(bits.into(), heads),
            };
        }
        if found != 0 {
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
    fn heads_that_are_in_no_list_are_found() {
        let mut bins = Bins {
            map: [0; WORDS],
            heads: [0; COUNT],
        };
        let listed = [0, 7, 8, 63, 64, COUNT - 1];
        for list in listed {
            bins.set_head(list, 0x1000);
        }
        assert!(bins.lists().unwrap().eq(listed));
        for list in 0..COUNT {
            let before = std::mem::replace(&mut bins.heads[list], 1 << 40);
            assert_eq!(bins.lists().is_some(), listed.contains(&list), "{list}");
            bins.heads[list] = before;
        }
    }

    #[test]
    fn bins_are_ordered_by_size() {
        let mut highest = 0;
        let powers = (COARSE_LOG..=GRAINS_MAX.ilog2()).map(|log| 1usize << log);
        let near = |power: usize| power - 2..(power + 3).min(GRAINS_MAX + 1);
        for grains in (1..=COARSE).chain(powers.clone().flat_map(near)) {
            let list = list_of(grains);
            assert!(list == highest || list == highest + 1 || grains + 2 >= COARSE);
            highest = highest.max(list);
        }
        assert_eq!(highest, COUNT - 1);
        for power in powers {
            assert_eq!(list_of(power), list_of(power - 1) + 1);
            assert!(power > GRAINS_MAX / 2 || list_of(power) == list_of(2 * power - 1));
        }
        let halves = [COARSE / 2, COARSE, 64 * COARSE, GRAINS_MAX / 2];
        let around = |half: usize| half - 2000..half + 2000;
        for grains in (1..5000).chain(halves.into_iter().flat_map(around)) {
            let list = list_for(grains);
            assert!(list >= list_of(grains));
            let smaller = (1..grains).rev().take(1000);
            assert!(smaller.map(list_of).all(|other| other < list), "{grains}");
        }
    }
}
