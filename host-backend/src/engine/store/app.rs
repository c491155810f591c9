//! An app: its domains, their extents, and which frame holds which page.

use vmsrs_protocol::control::{Extent, PageFrame};
use vmsrs_protocol::{APP_PAGES, EXTENT_UNIT_PAGES, NONE};

use super::keys::KeyTable;

/// The extents behind a domain's first one, boxed: most domains have one extent.
#[derive(Default)]
struct MoreExtents(Vec<Extent>);

/// A domain. Extents are never given back, and pages are handed out upwards, so a domain's extents
/// are in the order of their pages.
#[derive(Default)]
struct Domain {
    /// Its first extent; without pages as long as there is none.
    first: Extent,
    more: Option<Box<MoreExtents>>,
    /// Pages with a sealed frame.
    sealed: u32,
}

impl Domain {
    fn extents(&self) -> impl Iterator<Item = Extent> {
        let first = Some(self.first).filter(|extent| extent.pages != 0);
        let more = self.more.as_deref().map_or(&[][..], |more| &more.0);
        first.into_iter().chain(more.iter().copied())
    }

    fn extent_count(&self) -> u32 {
        let more = self.more.as_deref().map_or(0, |more| more.0.len());
        // Extents have at least one unit, so there are fewer than `APP_PAGES`.
        u32::from(self.first.pages != 0) + more as u32
    }

    /// The extents from number `index` on.
    fn extents_from(&self, index: u32) -> impl Iterator<Item = Extent> {
        let more = self.more.as_deref().map_or(&[][..], |more| &more.0);
        let rest = (index as usize).saturating_sub(1).min(more.len());
        let first = Some(self.first).filter(|extent| index == 0 && extent.pages != 0);
        first.into_iter().chain(more[rest..].iter().copied())
    }

    fn push(&mut self, extent: Extent) {
        if self.first.pages == 0 {
            self.first = extent;
        } else {
            let more = self.more.get_or_insert_default();
            grow(&mut more.0, 1);
            more.0.push(extent);
        }
    }
}

/// One server program.
pub(crate) struct App {
    name: Box<[u8]>,
    keys: KeyTable,
    domains: Vec<Domain>,
    /// The domain of each unit of pages that is in an extent.
    owners: Vec<u32>,
    /// The frame of each page that is in an extent, or [`NONE`] if it was never committed.
    map: Vec<u32>,
}

impl App {
    pub(crate) fn new(name: &[u8]) -> Self {
        Self {
            name: name.into(),
            keys: KeyTable::default(),
            domains: Vec::new(),
            owners: Vec::new(),
            map: Vec::new(),
        }
    }

    pub(crate) fn name(&self) -> &[u8] {
        &self.name
    }

    /// Number of domains.
    pub(crate) fn domains(&self) -> u32 {
        self.keys.len()
    }

    pub(crate) fn has_domain(&self, domain: u32) -> bool {
        domain < self.domains()
    }

    pub(crate) fn find(&self, key: &[u8]) -> Option<u32> {
        self.keys.find(key)
    }

    pub(crate) fn key(&self, domain: u32) -> Option<&[u8]> {
        self.keys.key(domain)
    }

    /// Adds a domain whose key is not there yet.
    pub(crate) fn add_domain(&mut self, key: &[u8]) -> u32 {
        grow(&mut self.domains, 1);
        self.domains.push(Domain::default());
        self.keys.insert(key)
    }

    /// Number of extents and of sealed pages of an existing domain.
    pub(crate) fn domain_size(&self, domain: u32) -> (u32, u32) {
        let domain = &self.domains[domain as usize];
        (domain.extent_count(), domain.sealed)
    }

    /// Extents of an existing domain from number `index` on.
    pub(crate) fn extents_from(&self, domain: u32, index: u32) -> impl Iterator<Item = Extent> {
        self.domains[domain as usize].extents_from(index)
    }

    /// Sealed pages of an existing domain from page `first` on.
    pub(crate) fn pages_from(&self, domain: u32, first: u32) -> impl Iterator<Item = PageFrame> {
        self.domains[domain as usize]
            .extents()
            .flat_map(move |extent| first.max(extent.page)..(extent.page + extent.pages).max(first))
            .map(|page| PageFrame {
                page,
                frame: self.map[page as usize],
            })
            .filter(|entry| entry.frame != NONE)
    }

    /// Pages that no extent has taken yet.
    pub(crate) fn pages_left(&self) -> u32 {
        APP_PAGES - self.pages()
    }

    /// Pages in extents.
    pub(crate) fn pages(&self) -> u32 {
        // The address range has `APP_PAGES` pages, checked by `pages_left`.
        self.map.len() as u32
    }

    /// Adds an extent of `pages` pages, whole units and at most [`Self::pages_left`], to an
    /// existing domain.
    pub(crate) fn add_extent(&mut self, domain: u32, pages: u32) -> Extent {
        let extent = Extent {
            page: self.pages(),
            pages,
        };
        let units = (pages / EXTENT_UNIT_PAGES) as usize;
        grow(&mut self.owners, units);
        self.owners.resize(self.owners.len() + units, domain);
        grow(&mut self.map, pages as usize);
        self.map.resize(self.map.len() + pages as usize, NONE);
        self.domains[domain as usize].push(extent);
        extent
    }

    /// The domain that a page belongs to.
    pub(crate) fn owner(&self, page: u32) -> Option<u32> {
        self.owners
            .get((page / EXTENT_UNIT_PAGES) as usize)
            .copied()
    }

    /// The sealed frame of a page in an extent, or [`NONE`].
    pub(crate) fn frame(&self, page: u32) -> u32 {
        self.map[page as usize]
    }

    /// Puts another frame, or [`NONE`], behind a page in an extent.
    pub(crate) fn set_frame(&mut self, page: u32, frame: u32) {
        let domain = &mut self.domains[self.owners[(page / EXTENT_UNIT_PAGES) as usize] as usize];
        let entry = &mut self.map[page as usize];
        domain.sealed -= u32::from(*entry != NONE);
        domain.sealed += u32::from(frame != NONE);
        *entry = frame;
    }

    /// Bytes of host memory in use.
    pub(crate) fn bytes(&self) -> usize {
        let more: usize = self
            .domains
            .iter()
            .filter_map(|domain| domain.more.as_deref())
            .map(|more| size_of::<MoreExtents>() + more.0.capacity() * size_of::<Extent>())
            .sum();
        self.keys.bytes()
            + more
            + self.domains.capacity() * size_of::<Domain>()
            + (self.owners.capacity() + self.map.capacity()) * size_of::<u32>()
    }
}

/// Makes room for `more` elements. A vector's own doubling would waste half of the largest tables;
/// an eighth keeps the cost of growth constant as well.
fn grow<T>(vector: &mut Vec<T>, more: usize) {
    if vector.capacity() - vector.len() < more {
        vector.reserve_exact(more.max(vector.len() / 8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> App {
        let mut app = App::new(b"app");
        app.add_domain(b"a");
        app.add_domain(b"b");
        app
    }

    #[test]
    fn extents_follow_each_other_and_own_their_pages() {
        let mut app = app();
        assert_eq!(app.add_extent(0, 4), Extent { page: 0, pages: 4 });
        assert_eq!(app.add_extent(1, 8), Extent { page: 4, pages: 8 });
        assert_eq!(app.add_extent(0, 4), Extent { page: 12, pages: 4 });
        assert_eq!(app.owner(3), Some(0));
        assert_eq!(app.owner(11), Some(1));
        assert_eq!(app.owner(15), Some(0));
        assert_eq!(app.owner(16), None);
        assert_eq!(app.owner(u32::MAX), None);
        for (index, pages) in [(0, vec![0, 12]), (1, vec![12]), (2, vec![]), (9, vec![])] {
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
        for (page, frame) in [(1, 11), (5, 55), (8, 88), (11, 111)] {
            app.set_frame(page, frame);
        }
        for (first, pages) in [
            (0, vec![1, 8, 11]),
            (2, vec![8, 11]),
            (9, vec![11]),
            (u32::MAX, vec![]),
        ] {
            let found: Vec<u32> = app.pages_from(0, first).map(|entry| entry.page).collect();
            assert_eq!(found, pages, "from {first}");
        }
        assert_eq!(app.domain_size(0), (2, 3));
        app.set_frame(8, NONE);
        assert_eq!(app.domain_size(0), (2, 2));
    }
}
