//! An app: its domains, their extents, and which frame holds which page.

mod give_back;

use std::collections::{HashMap, HashSet};

use vmsrs_protocol::control::{Extent, PageFrame};
use vmsrs_protocol::{APP_PAGES, EXTENT_UNIT_PAGES, MAX_DOMAINS, NONE};

use super::gaps::Gaps;
use super::grow;
use super::keys::KeyTable;
use super::places::{Place, Places};

/// A domain. Its extents are in the order of their pages: each new one lies above the others.
#[derive(Default)]
struct Domain {
    /// Its first extent; without pages until there is one.
    first: Extent,
    /// Pages with a sealed frame; [`NONE`] if the domain was deleted.
    sealed: u32,
}

impl Domain {
    const DEAD: Self = Self {
        first: Extent { page: 0, pages: 0 },
        sealed: NONE,
    };
}

/// Consecutive pages that have one owner, as many as a unit has.
struct Unit {
    /// The domain, below `MAX_DOMAINS`, and above it a bit for each page that a batch names.
    owner: u32,
    /// The frame of each page, or [`NONE`] if it was never committed.
    frames: [u32; EXTENT_UNIT_PAGES as usize],
}

/// Position of the bits in [`Unit::owner`] that mark pages.
const NAMED_SHIFT: u32 = u32::BITS - EXTENT_UNIT_PAGES;
/// In place of an owner in a unit that is in no extent.
const NO_OWNER: u32 = (1 << NAMED_SHIFT) - 1;
const _: () = assert!(MAX_DOMAINS <= NO_OWNER);

impl Unit {
    fn owner(&self) -> u32 {
        self.owner & NO_OWNER
    }
}

/// A page that a batch names.
#[derive(Clone, Copy)]
pub(crate) struct NamedPage {
    /// Where its unit is in [`App::units`]; no unit is given back while a batch names a page of it.
    unit: u32,
    pub(crate) page: u32,
}

impl NamedPage {
    /// Its place in its unit.
    fn place(self) -> usize {
        (self.page % EXTENT_UNIT_PAGES) as usize
    }

    /// Its mark in [`Unit::owner`].
    fn bit(self) -> u32 {
        1 << (NAMED_SHIFT + self.page % EXTENT_UNIT_PAGES)
    }
}

/// Why a batch cannot name a page.
pub(crate) enum Unnamed {
    /// It is not the domain's.
    Foreign,
    /// The batch names it already.
    Twice,
}

/// One server program.
pub(crate) struct App {
    name: Box<[u8]>,
    keys: KeyTable,
    domains: Vec<Domain>,
    /// One bit a domain: each sealed page has a second copy. As long as the last such domain needs.
    mirrored: Vec<u64>,
    /// Sealed pages whose content is lost, of the domains that have such.
    damaged: HashMap<u32, u32>,
    /// The extents after the first one, of the few domains that have more than one.
    more: HashMap<u32, Vec<Extent>>,
    /// Extents that `more` has memory for.
    more_capacity: usize,
    /// Who owns each unit of the address range up to the end of the last extent, and where it is in `units`.
    places: Places,
    /// The units of extents of which a batch has named a page, and those of `free_units`.
    units: Vec<Unit>,
    /// Units that are in no extent any more.
    free_units: Vec<u32>,
    /// Addresses that were given back.
    gaps: Gaps,
    /// Numbers of deleted domains that processes in the guest may still know.
    dead: HashSet<u32>,
    /// Numbers of deleted domains that another one may have.
    free: Vec<u32>,
    /// See [`App::has_deleted`].
    has_deleted: bool,
    /// Pages of all domains with a sealed frame.
    sealed: u32,
}

impl App {
    pub(crate) fn new(name: &[u8]) -> Self {
        Self {
            name: name.into(),
            keys: KeyTable::default(),
            domains: Vec::new(),
            mirrored: Vec::new(),
            damaged: HashMap::new(),
            more: HashMap::new(),
            more_capacity: 0,
            places: Places::default(),
            units: Vec::new(),
            free_units: Vec::new(),
            gaps: Gaps::default(),
            dead: HashSet::new(),
            free: Vec::new(),
            has_deleted: false,
            sealed: 0,
        }
    }

    pub(crate) fn name(&self) -> &[u8] {
        &self.name
    }

    /// Number of domains, deleted ones included: all have smaller numbers.
    pub(crate) fn domains(&self) -> u32 {
        self.keys.len()
    }

    pub(crate) fn has_domain(&self, domain: u32) -> bool {
        let facts = self.domains.get(domain as usize);
        facts.is_some_and(|facts| facts.sealed != NONE)
    }

    /// Whether one more domain can get a number.
    pub(crate) fn has_number(&self, wanted: u32) -> bool {
        self.domains() < MAX_DOMAINS || !self.free.is_empty() || self.dead.contains(&wanted)
    }

    pub(crate) fn find(&self, key: &[u8]) -> Option<u32> {
        self.keys.find(key)
    }

    pub(crate) fn key(&self, domain: u32) -> Option<&[u8]> {
        self.keys.key(domain)
    }

    /// Adds a domain whose key is not there yet. It may have the number `reuse` if that was a deleted domain's.
    pub(crate) fn add_domain(&mut self, key: &[u8], reuse: u32) -> u32 {
        if let Some(number) = self.take_number(reuse) {
            self.domains[number as usize] = Domain::default();
            self.keys.insert_again(key, number);
            return number;
        }
        grow(&mut self.domains, 1);
        self.domains.push(Domain::default());
        self.keys.insert(key)
    }

    /// The extents of an existing domain after its first one.
    fn more(&self, domain: u32) -> &[Extent] {
        self.more.get(&domain).map_or(&[], Vec::as_slice)
    }

    /// Number of extents and of sealed pages of an existing domain.
    pub(crate) fn domain_size(&self, domain: u32) -> (u32, u32) {
        let facts = &self.domains[domain as usize];
        // Extents have at least one unit, so there are fewer than `APP_PAGES`.
        let extents = u32::from(facts.first.pages != 0) + self.more(domain).len() as u32;
        (extents, facts.sealed)
    }

    /// Whether each sealed page of an existing domain has a second copy.
    pub(crate) fn is_mirrored(&self, domain: u32) -> bool {
        let word = self.mirrored.get((domain / u64::BITS) as usize);
        word.is_some_and(|word| word >> (domain % u64::BITS) & 1 == 1)
    }

    pub(crate) fn set_mirrored(&mut self, domain: u32) {
        let index = (domain / u64::BITS) as usize;
        if self.mirrored.len() <= index {
            self.mirrored.resize(index + 1, 0);
        }
        self.mirrored[index] |= 1 << (domain % u64::BITS);
    }

    fn clear_mirrored(&mut self, domain: u32) {
        if let Some(word) = self.mirrored.get_mut((domain / u64::BITS) as usize) {
            *word &= !(1 << (domain % u64::BITS));
        }
    }

    /// Sealed pages of an existing domain whose content is lost.
    pub(crate) fn damaged(&self, domain: u32) -> u32 {
        self.damaged.get(&domain).copied().unwrap_or(0)
    }

    /// Counts a page in an extent whose content is lost, or is so no longer.
    pub(crate) fn set_damaged(&mut self, page: u32, damaged: bool) {
        if let Some(owner) = self.owner(page) {
            let count = self.damaged.entry(owner).or_default();
            *count = match damaged {
                true => *count + 1,
                false => count.saturating_sub(1),
            };
        }
    }

    /// Pages in the extents of an existing domain.
    pub(crate) fn domain_pages(&self, domain: u32) -> u32 {
        // An app has fewer than `APP_PAGES` pages.
        self.extents_from(domain, 0)
            .map(|extent| extent.pages)
            .sum()
    }

    /// Extents of an existing domain from number `index` on.
    pub(crate) fn extents_from(&self, domain: u32, index: u32) -> impl Iterator<Item = Extent> {
        let first = self.domains[domain as usize].first;
        let more = self.more(domain);
        let rest = (index as usize).saturating_sub(1).min(more.len());
        let first = Some(first).filter(|extent| index == 0 && extent.pages != 0);
        first.into_iter().chain(more[rest..].iter().copied())
    }

    /// Sealed pages of an existing domain from page `first` on.
    pub(crate) fn pages_from(&self, domain: u32, first: u32) -> impl Iterator<Item = PageFrame> {
        self.rest_of(domain, first).flat_map(move |(from, to)| {
            let (start, end) = (from / EXTENT_UNIT_PAGES, to.div_ceil(EXTENT_UNIT_PAGES));
            let placed = self.places.placed(start, end);
            let pages = placed.flat_map(|(unit, place)| {
                (unit * EXTENT_UNIT_PAGES..).zip(self.units[place as usize].frames)
            });
            // The first unit may begin before.
            pages
                .filter(move |&(page, frame)| page >= from && frame != NONE)
                .map(|(page, frame)| PageFrame { page, frame })
        })
    }

    /// All pages of an existing domain from page `first` on; those that were never committed have the
    /// frame [`NONE`].
    pub(crate) fn places_from(&self, domain: u32, first: u32) -> impl Iterator<Item = PageFrame> {
        self.rest_of(domain, first)
            .flat_map(|(from, to)| from..to)
            .map(|page| PageFrame {
                page,
                frame: self.frame(page),
            })
    }

    /// Where the extents of an existing domain begin and end, without what is below page `first`.
    fn rest_of(&self, domain: u32, first: u32) -> impl Iterator<Item = (u32, u32)> {
        let more = self.more(domain);
        // In the order of their pages, below `APP_PAGES`.
        let over = more.partition_point(|extent| extent.page + extent.pages <= first);
        let head = Some(self.domains[domain as usize].first).filter(|extent| extent.pages != 0);
        head.into_iter()
            .chain(more[over..].iter().copied())
            .map(move |extent| (extent.page, extent.page + extent.pages))
            .map(move |(from, to)| (from.max(first), to))
            .filter(|(from, to)| from < to)
    }

    /// Maximum number of pages that the next extent can have.
    pub(crate) fn pages_left(&self) -> u32 {
        APP_PAGES
            .saturating_sub(self.end())
            .saturating_sub(EXTENT_UNIT_PAGES)
    }

    /// Pages in extents.
    #[cfg(test)]
    pub(crate) fn pages(&self) -> u32 {
        let domains = (0..self.domains()).filter(|&domain| self.has_domain(domain));
        domains.map(|domain| self.domain_pages(domain)).sum()
    }

    /// The page after the last extent.
    pub(crate) fn end(&self) -> u32 {
        self.places.len() * EXTENT_UNIT_PAGES
    }

    /// Adds an extent of `pages` pages, whole units and at most [`Self::pages_left`], to an
    /// existing domain, above its other extents.
    ///
    /// A guard unit without an owner separates it from another domain's extent: a write that runs
    /// over the end of a domain is refused there, also when the neighbour's pages are being written
    /// by its own request. Guard pages have no frame and cost address range alone.
    pub(crate) fn add_extent(&mut self, domain: u32, pages: u32) -> Extent {
        let count = pages / EXTENT_UNIT_PAGES;
        let start = self.take_addresses(domain, count);
        self.places.give(start, start + count, domain);
        let extent = Extent {
            page: start * EXTENT_UNIT_PAGES,
            pages,
        };
        let first = &mut self.domains[domain as usize].first;
        if first.pages == 0 {
            *first = extent;
        } else {
            let more = self.more.entry(domain).or_default();
            self.more_capacity -= more.capacity();
            more.push(extent);
            self.more_capacity += more.capacity();
        }
        extent
    }

    /// Finds addresses for an extent of `count` units of a domain. Returns the first unit.
    fn take_addresses(&mut self, domain: u32, count: u32) -> u32 {
        let last = self.more(domain).last();
        let last = last.unwrap_or(&self.domains[domain as usize].first);
        let least = (last.page + last.pages) / EXTENT_UNIT_PAGES;
        if let Some(start) = self.gaps.take(count, least) {
            return start;
        }
        // The last unit has an owner.
        let neighbour = self.end().checked_sub(1).and_then(|page| self.owner(page));
        self.places.len() + u32::from(neighbour.is_some_and(|owner| owner != domain))
    }

    /// Adds a unit of a domain. Returns its place in `units`.
    fn add_unit(&mut self, domain: u32) -> u32 {
        let unit = Unit {
            owner: domain,
            frames: [NONE; EXTENT_UNIT_PAGES as usize],
        };
        if let Some(place) = self.free_units.pop() {
            self.units[place as usize] = unit;
            return place;
        }
        grow(&mut self.units, 1);
        self.units.push(unit);
        self.units.len() as u32 - 1
    }

    /// Gives the unit of a page, which is a domain's, its place.
    #[cold]
    fn place_unit(&mut self, domain: u32, page: u32) -> u32 {
        let place = self.add_unit(domain);
        self.places.set(page / EXTENT_UNIT_PAGES, place);
        place
    }

    fn unit(&self, page: u32) -> Option<&Unit> {
        match self.places.get(page / EXTENT_UNIT_PAGES) {
            Place::At(place) => self.units.get(place as usize),
            Place::Gap | Place::Owned(_) => None,
        }
    }

    /// The domain that a page belongs to.
    pub(crate) fn owner(&self, page: u32) -> Option<u32> {
        match self.places.get(page / EXTENT_UNIT_PAGES) {
            Place::At(place) => self.units.get(place as usize).map(Unit::owner),
            Place::Owned(domain) => Some(domain),
            Place::Gap => None,
        }
    }

    /// The sealed frame of a page; [`NONE`] if it was never committed or is in no extent.
    pub(crate) fn frame(&self, page: u32) -> u32 {
        self.unit(page).map_or(NONE, |unit| {
            unit.frames[(page % EXTENT_UNIT_PAGES) as usize]
        })
    }

    /// Maps a page that a batch names to another frame, and takes the mark away.
    #[inline]
    pub(crate) fn set_named_frame(&mut self, named: NamedPage, frame: u32) {
        let unit = &mut self.units[named.unit as usize];
        unit.owner &= !named.bit();
        let former = std::mem::replace(&mut unit.frames[named.place()], frame);
        if former == NONE {
            self.domains[unit.owner() as usize].sealed += 1;
            self.sealed += 1;
        }
    }

    /// Number of sealed pages of all domains.
    pub(crate) fn sealed(&self) -> u32 {
        self.sealed
    }

    /// Marks a page of a domain as named by a batch. Returns it with its sealed frame, or [`NONE`].
    #[inline]
    pub(crate) fn name_page(
        &mut self,
        domain: u32,
        page: u32,
    ) -> Result<(NamedPage, u32), Unnamed> {
        let number = match self.places.get(page / EXTENT_UNIT_PAGES) {
            Place::At(place) => place,
            Place::Owned(owner) if owner == domain => self.place_unit(domain, page),
            Place::Owned(_) | Place::Gap => return Err(Unnamed::Foreign),
        };
        let unit = self.units.get_mut(number as usize);
        let Some(unit) = unit.filter(|unit| unit.owner() == domain) else {
            return Err(Unnamed::Foreign);
        };
        let named = NamedPage { unit: number, page };
        if unit.owner & named.bit() != 0 {
            return Err(Unnamed::Twice);
        }
        unit.owner |= named.bit();
        Ok((named, unit.frames[named.place()]))
    }

    /// Takes that mark away.
    pub(crate) fn release_page(&mut self, named: NamedPage) {
        self.units[named.unit as usize].owner &= !named.bit();
    }

    /// Whether a page is marked as named by a batch.
    #[cfg(test)]
    pub(crate) fn is_named(&self, page: u32) -> bool {
        self.unit(page)
            .is_some_and(|unit| unit.owner >> (NAMED_SHIFT + page % EXTENT_UNIT_PAGES) & 1 == 1)
    }

    /// Bytes of host memory in use.
    pub(crate) fn bytes(&self) -> usize {
        self.keys.bytes()
            + self.more.capacity() * size_of::<(u32, Vec<Extent>)>()
            + self.more_capacity * size_of::<Extent>()
            + self.mirrored.capacity() * size_of::<u64>()
            + self.damaged.capacity() * size_of::<(u32, u32)>()
            + self.domains.capacity() * size_of::<Domain>()
            + self.places.bytes()
            + self.units.capacity() * size_of::<Unit>()
            + (self.free_units.capacity() + self.free.capacity()) * size_of::<u32>()
            + self.dead.capacity() * size_of::<u32>()
            + self.gaps.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> App {
        let mut app = App::new(b"app");
        app.add_domain(b"a", NONE);
        app.add_domain(b"b", NONE);
        app
    }

    #[test]
    fn extents_own_their_pages_and_guards_have_no_owner() {
        let mut app = app();
        assert_eq!(app.add_extent(0, 4), Extent { page: 0, pages: 4 });
        assert_eq!(app.add_extent(1, 8), Extent { page: 8, pages: 8 });
        assert_eq!(app.add_extent(1, 4), Extent { page: 16, pages: 4 });
        assert_eq!(app.add_extent(0, 4), Extent { page: 24, pages: 4 });
        assert_eq!(app.pages(), 20);
        for (page, owner) in [
            (3, Some(0)),
            (4, None),
            (7, None),
            (8, Some(1)),
            (15, Some(1)),
            (19, Some(1)),
            (20, None),
            (24, Some(0)),
            (28, None),
            (u32::MAX, None),
        ] {
            assert_eq!(app.owner(page), owner, "page {page}");
        }
        for (index, pages) in [(0, vec![0, 24]), (1, vec![24]), (2, vec![]), (9, vec![])] {
            let found: Vec<u32> = app
                .extents_from(0, index)
                .map(|extent| extent.page)
                .collect();
            assert_eq!(found, pages);
        }
    }

    #[test]
    fn sealed_pages_are_listed_in_order_from_any_page_on() {
        let mut app = app();
        app.add_extent(0, 4);
        app.add_extent(1, 4);
        app.add_extent(0, 4);
        for (page, frame) in [(1, 11), (9, 55), (16, 88), (19, 111)] {
            let owner = app.owner(page).unwrap();
            let (named, former) = app.name_page(owner, page).ok().unwrap();
            assert_eq!(former, NONE);
            app.set_named_frame(named, frame);
        }
        for (first, pages) in [
            (0, vec![1, 16, 19]),
            (2, vec![16, 19]),
            (17, vec![19]),
            (u32::MAX, vec![]),
        ] {
            let found: Vec<u32> = app.pages_from(0, first).map(|entry| entry.page).collect();
            assert_eq!(found, pages, "from {first}");
        }
        assert_eq!((app.domain_size(0), app.sealed()), ((2, 3), 4));
    }

    #[test]
    fn a_large_extent_takes_memory_by_what_is_committed() {
        let mut app = app();
        app.add_extent(1, 4);
        let before = app.bytes();
        // Half a terabyte.
        let pages = 1 << 27;
        assert_eq!(app.add_extent(0, pages), Extent { page: 8, pages });
        assert!(app.bytes() - before < 1 << 20, "{}", app.bytes());
        let middle = pages / 2 + 3;
        assert_eq!((app.owner(middle), app.frame(middle)), (Some(0), NONE));
        assert!(matches!(app.name_page(1, middle), Err(Unnamed::Foreign)));
        let (named, former) = app.name_page(0, middle).ok().unwrap();
        assert_eq!(former, NONE);
        app.set_named_frame(named, 7);
        assert!(app.name_page(0, middle + 1).is_ok());
        let found: Vec<PageFrame> = app.pages_from(0, 0).collect();
        let (page, frame) = (middle, 7);
        assert_eq!(found, [PageFrame { page, frame }]);
        assert!(app.bytes() - before < 1 << 20, "{}", app.bytes());
        assert_eq!(app.owner(pages + 7), Some(0));
        assert_eq!(app.owner(pages + 8), None);
        assert_eq!(app.remove_extents(0, 0), pages);
        assert_eq!((app.end(), app.sealed()), (4, 0));
        app.check_given_back();
    }

    #[test]
    fn what_is_given_back_is_used_again() {
        let mut app = app();
        app.add_domain(b"c", NONE);
        for domain in 0..3 {
            app.add_extent(domain, 8);
        }
        // [aa.bb.cc]
        assert_eq!(app.remove_extents(1, 0), 8);
        app.remove_domain(1);
        app.check_given_back();
        assert!(!app.has_domain(1) && app.find(b"b").is_none());
        // Nobody says that the number may be had; the addresses may.
        assert_eq!(app.add_domain(b"d", NONE), 3);
        assert_eq!(app.add_extent(3, 4).page, 12);
        app.check_given_back();
        assert_eq!(app.owner(16), None);
        assert_eq!(app.add_domain(b"another", 1), 1);
        assert_eq!(app.find(b"another"), Some(1));
        assert_eq!(app.key(1), Some(b"another".as_slice()));
        // No room there with a guard on either side.
        assert_eq!(app.add_extent(1, 4).page, 36);
        assert_eq!(app.remove_extents(1, 0), 4);
        assert_eq!(app.end(), 32);
        app.remove_domain(1);
        app.free_numbers();
        assert_eq!(app.add_domain(b"e", NONE), 1);
        app.check_given_back();
    }

    #[test]
    fn a_domain_grows_upwards_only() {
        let mut app = app();
        app.add_extent(0, 16);
        app.add_extent(1, 4);
        assert_eq!(app.remove_extents(0, 0), 16);
        // The gap lies below.
        assert_eq!(app.add_extent(1, 4).page, 24);
        assert_eq!(app.add_extent(0, 4).page, 0);
        assert_eq!(app.add_extent(0, 4).page, 8);
        assert_eq!(app.remove_extents(1, 1), 4);
        app.check_given_back();
        assert_eq!(app.end(), 24);
        assert_eq!(app.extents_from(1, 0).count(), 1);
    }
}
