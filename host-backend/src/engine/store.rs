//! Storage management: which frame of the vault holds which page of which domain.

mod app;
mod frames;
mod gaps;
mod keys;
mod places;

use vmsrs_protocol::control::{
    AddExtent, AppReply, DOMAIN_DAMAGED, DOMAIN_MIRROR, DomainReply, Extent, OpenApp, OpenDomain,
    PageFrame,
};
use vmsrs_protocol::{DAMAGED_FRAME, EXTENT_MAX_PAGES, EXTENT_UNIT_PAGES, KEY_MAX, MAX_APPS, NONE};

use super::config::{ConfigError, EngineConfig};
use super::refusal::Refusal;

use app::Unnamed;
pub(crate) use app::{App, NamedPage};
pub(crate) use frames::FrameTable;
pub use frames::{FrameState, PageOf};

/// The committed page that a frame holds, with its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageOwner {
    pub(crate) app: u32,
    pub(crate) domain: u32,
    /// Number of the page in its app.
    pub(crate) page: u32,
}

const NOT_OWNER: Refusal = Refusal::NotOwner("the driver named a page that is not its domain's");

/// Sealed pages of a domain that are looked for at a time when it gives them back.
const GIVEN_BACK: usize = 1024;

/// Frames, apps, and the budget of the vault.
pub(crate) struct Store {
    pub(crate) frames: FrameTable,
    pub(crate) apps: Vec<App>,
    /// Retired frames that could not be wiped; see [`super::Engine::cleanse`].
    pub(crate) unwiped: Vec<u32>,
    /// Pages that extents may have in all.
    page_frames: u32,
    /// Pages that extents have in all.
    pages: u32,
    /// Frames that are set aside for second copies of pages.
    mirror_frames: u32,
    /// Sealed pages whose content is lost.
    damaged: u32,
    /// Domains of all apps. Each needs a unit of pages to be of any use, which bounds their number
    /// and with it the memory that a guest can make the host spend.
    domains: u32,
}

impl Store {
    pub(crate) fn new(config: &EngineConfig) -> Result<Self, ConfigError> {
        Ok(Self {
            page_frames: config.page_frames()?,
            frames: FrameTable::new(config.vault_frames),
            apps: Vec::new(),
            unwiped: Vec::new(),
            pages: 0,
            mirror_frames: 0,
            damaged: 0,
            domains: 0,
        })
    }

    pub(crate) fn open_app(&mut self, message: &OpenApp) -> Result<AppReply, Refusal> {
        let length = message.name.iter().take_while(|&&byte| byte != 0).count();
        let (name, padding) = message.name.split_at(length);
        if name.is_empty() || padding.iter().any(|&byte| byte != 0) {
            return Err(Refusal::Malformed(
                "the driver opened an app without a name",
            ));
        }
        let found = self.apps.iter().position(|app| app.name() == name);
        let number = match found {
            Some(number) => number,
            None if self.apps.len() == MAX_APPS as usize => {
                return Err(Refusal::NoSpace(
                    "the driver opened more apps than the limit",
                ));
            }
            None => {
                self.apps.push(App::new(name));
                self.apps.len() - 1
            }
        };
        Ok(AppReply {
            // Below `MAX_APPS`.
            app: number as u32,
            domains: self.apps[number].domains(),
        })
    }

    pub(crate) fn open_domain(&mut self, message: &OpenDomain) -> Result<DomainReply, Refusal> {
        let length = message.key_length as usize;
        if length == 0 || length > KEY_MAX {
            return Err(Refusal::Malformed(
                "the driver opened a domain whose key is empty or too long",
            ));
        }
        let (key, padding) = message.key.split_at(length);
        if padding.iter().any(|&byte| byte != 0) {
            return Err(Refusal::Malformed(
                "the driver opened a domain with bytes after its key",
            ));
        }
        if message.flags & !DOMAIN_MIRROR != 0 {
            return Err(Refusal::Malformed(
                "the driver opened a domain with unknown flags",
            ));
        }
        if message.pages > EXTENT_MAX_PAGES {
            return Err(Refusal::Malformed(
                "the driver opened a domain with a first extent that is too long",
            ));
        }
        let app = self.app(message.app)?;
        let known = app.find(key);
        if known.is_none() && !app.has_number(message.reuse) {
            return Err(Refusal::NoSpace(
                "the driver opened more domains than an app can have",
            ));
        }
        if known.is_none() && self.domains >= self.page_frames.div_ceil(EXTENT_UNIT_PAGES) {
            return Err(Refusal::NoSpace(
                "the driver opened more domains than the vault has room for",
            ));
        }
        // Pages that it has, and whether they have copies.
        let (own, mirrored) = known.map_or((0, false), |domain| {
            (app.domain_pages(domain), app.is_mirrored(domain))
        });
        let pages = match own {
            0 => message.pages.next_multiple_of(EXTENT_UNIT_PAGES),
            _ => 0,
        };
        let mirror = message.flags & DOMAIN_MIRROR != 0;
        let copies = match mirror && !mirrored {
            true => own + pages,
            false => u32::from(mirrored) * pages,
        };
        self.check_room(message.app, pages, copies)?;
        self.pages += pages;
        self.mirror_frames += copies;
        let app = &mut self.apps[message.app as usize];
        let domain = known.unwrap_or_else(|| {
            self.domains += 1;
            app.add_domain(key, message.reuse)
        });
        if mirror {
            app.set_mirrored(domain);
        }
        if pages > 0 {
            app.add_extent(domain, pages);
        }
        let app = &self.apps[message.app as usize];
        let (extents, pages) = app.domain_size(domain);
        let first = app.extents_from(domain, 0).next().unwrap_or_default();
        let mut frames = [NONE; EXTENT_UNIT_PAGES as usize];
        for (frame, place) in frames.iter_mut().zip(app.places_from(domain, 0)) {
            *frame = self.shown(place.frame);
        }
        let mut flags = 0;
        if app.is_mirrored(domain) {
            flags |= DOMAIN_MIRROR;
        }
        if app.damaged(domain) != 0 {
            flags |= DOMAIN_DAMAGED;
        }
        Ok(DomainReply {
            domain,
            extents,
            pages,
            flags,
            first,
            frames,
        })
    }

    /// Whether an app can have an extent of so many pages, and the vault so many pages and second copies more.
    fn check_room(&self, app: u32, pages: u32, copies: u32) -> Result<(), Refusal> {
        // An app has fewer than `APP_PAGES` pages.
        let room = self.page_frames - self.pages - self.mirror_frames;
        if pages + copies > room || pages > self.apps[app as usize].pages_left() {
            return Err(Refusal::NoSpace(
                "the vault has no room for another extent or mirror",
            ));
        }
        Ok(())
    }

    /// The number under which the driver knows a page's sealed frame, which may be [`NONE`].
    fn shown(&self, frame: u32) -> u32 {
        match frame != NONE && self.frames.is_damaged(frame) {
            true => DAMAGED_FRAME,
            false => frame,
        }
    }

    /// The committed page in a frame, if it holds one.
    pub(crate) fn owner_of(&self, frame: u32) -> Option<PageOwner> {
        let PageOf { app, page } = self.frames.page(frame)?;
        let domain = self.apps.get(app as usize)?.owner(page)?;
        Some(PageOwner { app, domain, page })
    }

    /// Whether a page's domain has a mirror.
    pub(crate) fn is_mirrored(&self, page: PageOf) -> bool {
        let app = &self.apps[page.app as usize];
        app.owner(page.page)
            .is_some_and(|domain| app.is_mirrored(domain))
    }

    /// Notes that the content of a sealed frame is lost.
    pub(crate) fn damage(&mut self, frame: u32) {
        if let Some(owner) = self.frames.page(frame)
            && !self.frames.is_damaged(frame)
        {
            self.frames.set_damaged(frame, true);
            self.apps[owner.app as usize].set_damaged(owner.page, true);
            self.damaged += 1;
        }
    }

    /// Retires a sealed frame: its page, `owner`, gets another version.
    #[inline]
    pub(crate) fn supersede(&mut self, frame: u32, owner: PageOf) {
        if !self.frames.is_plain(frame) {
            self.forget_marks(frame, owner);
        }
        self.frames.retire(frame, FrameState::Sealed);
    }

    /// Retires a sealed frame's second copy; that its content is lost matters no more.
    #[cold]
    fn forget_marks(&mut self, frame: u32, owner: PageOf) {
        if let Some(copy) = self.frames.take_mirror(frame) {
            self.frames.retire(copy, FrameState::Mirror);
        }
        if self.frames.is_damaged(frame) {
            self.apps[owner.app as usize].set_damaged(owner.page, false);
            self.damaged -= 1;
        }
    }

    /// Whether the driver knows a page's sealed frame ([`NONE`] without one) under this number.
    pub(crate) fn is_shown_as(&self, frame: u32, number: u32) -> bool {
        number == frame || number == self.shown(frame)
    }

    /// Whether any domain has a mirror.
    pub(crate) fn has_mirrors(&self) -> bool {
        self.mirror_frames != 0
    }

    /// Sealed pages whose content is lost.
    pub(crate) fn damaged(&self) -> u32 {
        self.damaged
    }

    pub(crate) fn list_extents(
        &self,
        app: u32,
        domain: u32,
        first: u32,
        limit: usize,
    ) -> Result<(Vec<Extent>, u32), Refusal> {
        let mut extents = self
            .app_with_domain(app, domain)?
            .extents_from(domain, first);
        let list: Vec<Extent> = extents.by_ref().take(limit).collect();
        let next = match extents.next() {
            // There are fewer extents than pages in an app.
            Some(_) => first + list.len() as u32,
            None => NONE,
        };
        Ok((list, next))
    }

    pub(crate) fn list_pages(
        &self,
        app: u32,
        domain: u32,
        first: u32,
        limit: usize,
    ) -> Result<(Vec<PageFrame>, u32), Refusal> {
        let mut pages = self.app_with_domain(app, domain)?.pages_from(domain, first);
        let shown = |entry: PageFrame| PageFrame {
            frame: self.shown(entry.frame),
            ..entry
        };
        let list: Vec<PageFrame> = pages.by_ref().take(limit).map(shown).collect();
        let next = pages.next().map_or(NONE, |entry| entry.page);
        Ok((list, next))
    }

    pub(crate) fn add_extent(&mut self, message: &AddExtent) -> Result<Extent, Refusal> {
        let AddExtent {
            app,
            domain,
            index,
            pages,
        } = *message;
        let number = app as usize;
        let app = self.app_with_domain(app, domain)?;
        if let Some(extent) = app.extents_from(domain, index).next() {
            return Ok(extent);
        }
        if index != app.domain_size(domain).0 {
            return Err(Refusal::NotFound(
                "the driver asked for an extent beyond the next one of a domain",
            ));
        }
        if pages == 0 || pages > EXTENT_MAX_PAGES {
            return Err(Refusal::Malformed(
                "the driver asked for an extent of an invalid length",
            ));
        }
        let pages = pages.next_multiple_of(EXTENT_UNIT_PAGES);
        let copies = match app.is_mirrored(domain) {
            true => pages,
            false => 0,
        };
        self.check_room(message.app, pages, copies)?;
        self.pages += pages;
        self.mirror_frames += copies;
        Ok(self.apps[number].add_extent(domain, pages))
    }

    /// Gives back the extents of an existing domain from number `keep` on, with their frames; with [`NONE`] all of them, and the
    /// domain itself.
    pub(crate) fn give_back(&mut self, app: u32, domain: u32, keep: u32) {
        let number = app as usize;
        let is_deleted = keep == NONE;
        let keep = if is_deleted { 0 } else { keep };
        let first = self.apps[number].extents_from(domain, keep).next();
        let mut next = first.map(|extent| extent.page);
        while let Some(first) = next {
            // Extents lie in the order of their numbers.
            let pages = self.apps[number].pages_from(domain, first);
            let pages: Vec<PageFrame> = pages.take(GIVEN_BACK).collect();
            next = pages.last().map(|sealed| sealed.page + 1);
            for PageFrame { page, frame } in pages {
                self.supersede(frame, PageOf { app, page });
            }
        }
        let pages = self.apps[number].remove_extents(domain, keep);
        self.pages -= pages;
        if self.apps[number].is_mirrored(domain) {
            self.mirror_frames -= pages;
        }
        if is_deleted {
            self.apps[number].remove_domain(domain);
            self.domains -= 1;
        }
    }

    /// From here on nobody in the guest knows the numbers of deleted domains.
    pub(crate) fn free_numbers(&mut self) {
        self.apps.iter_mut().for_each(App::free_numbers);
    }

    /// Retires a frame whose memory is broken and cannot be replaced now: nobody uses it before it has been
    /// wiped.
    pub(crate) fn set_aside(&mut self, frame: u32, state: FrameState) {
        self.frames.set_aside(frame, state);
        self.unwiped.push(frame);
    }

    pub(crate) fn app(&self, app: u32) -> Result<&App, Refusal> {
        self.apps.get(app as usize).ok_or(Refusal::NotFound(
            "the driver named an app that does not exist",
        ))
    }

    pub(crate) fn app_with_domain(&self, app: u32, domain: u32) -> Result<&App, Refusal> {
        self.app(app)?;
        let app = &self.apps[app as usize];
        if app.has_domain(domain) {
            Ok(app)
        } else {
            Err(Refusal::NotFound(
                "the driver named a domain that does not exist",
            ))
        }
    }

    /// Checks that a page belongs to a domain.
    pub(crate) fn check_page(&self, app: u32, domain: u32, page: u32) -> Result<(), Refusal> {
        if self.app_with_domain(app, domain)?.owner(page) == Some(domain) {
            Ok(())
        } else {
            Err(NOT_OWNER)
        }
    }

    /// Marks a page of a domain as named by a batch. Returns it with its sealed frame, or [`NONE`].
    #[inline]
    pub(crate) fn name_page(
        &mut self,
        app: u32,
        domain: u32,
        page: u32,
    ) -> Result<(NamedPage, u32), Refusal> {
        let named = match self.apps.get_mut(app as usize) {
            Some(app) => app.name_page(domain, page),
            None => Err(Unnamed::Foreign),
        };
        match named {
            Ok(named) => Ok(named),
            Err(unnamed) => Err(self.why_unnamed(unnamed, app, domain, page)),
        }
    }

    #[cold]
    fn why_unnamed(&self, unnamed: Unnamed, app: u32, domain: u32, page: u32) -> Refusal {
        match unnamed {
            // Says whether there is such an app and domain.
            Unnamed::Foreign => self
                .check_page(app, domain, page)
                .err()
                .unwrap_or(NOT_OWNER),
            Unnamed::Twice => Refusal::Malformed("the driver named a page twice in a batch"),
        }
    }

    /// Number of domains of all apps.
    pub(crate) fn domains(&self) -> u32 {
        self.domains
    }

    /// Pages that extents have in all, and that they may have beside the mirrors.
    pub(crate) fn pages(&self) -> (u32, u32) {
        (self.pages, self.page_frames - self.mirror_frames)
    }

    /// Bytes of host memory in use.
    pub(crate) fn bytes(&self) -> usize {
        let apps: usize = self.apps.iter().map(App::bytes).sum();
        self.frames.bytes() + self.unwiped.capacity() * size_of::<u32>() + apps
    }

    /// Panics when an invariant of frames and pages does not hold. For tests.
    #[cfg(test)]
    pub(crate) fn check_invariants(&self) {
        let mut sealed = std::collections::HashMap::new();
        let mut pages = 0;
        for (number, app) in (0u32..).zip(&self.apps) {
            pages += app.pages();
            app.check_given_back();
            for page in 0..app.end() {
                let frame = app.frame(page);
                if frame != NONE {
                    let owner = PageOf { app: number, page };
                    assert_eq!(self.frames.page(frame), Some(owner), "frame {frame}");
                    assert_eq!(sealed.insert(frame, owner), None, "frame {frame} twice");
                }
            }
        }
        assert_eq!(pages, self.pages);
        assert!(self.pages + self.mirror_frames <= self.page_frames);
        let mut copies = Vec::new();
        let mut damaged = 0;
        for &frame in sealed.keys() {
            damaged += u32::from(self.frames.is_damaged(frame));
            copies.extend(self.frames.mirror(frame));
        }
        assert_eq!(damaged, self.damaged);
        copies.sort_unstable();
        let mirrors: Vec<u32> = self.frames.in_state(FrameState::Mirror).collect();
        assert_eq!(copies, mirrors, "every copy belongs to one page");
        assert!(copies.len() <= self.mirror_frames as usize);
        let [_, mut retired] = self.frames.check_lists();
        for &frame in &self.unwiped {
            assert!(retired.insert(frame), "frame {frame} is retired twice");
        }
        assert_eq!(
            retired.len(),
            self.frames.count(FrameState::Retired) as usize
        );
        let mut total = 0;
        for state in [
            FrameState::Free,
            FrameState::Staged,
            FrameState::Sealed,
            FrameState::Retired,
            FrameState::Mirror,
        ] {
            let frames = self.frames.in_state(state).count();
            assert_eq!(frames, self.frames.count(state) as usize);
            total += frames;
        }
        assert_eq!(total, self.frames.len() as usize);
        // The zero frame belongs to no page.
        let expected = sealed.len() + 1;
        assert_eq!(self.frames.count(FrameState::Sealed) as usize, expected);
    }
}

/// Makes room for `more` elements. A vector's own doubling would waste half of the largest tables;
/// an eighth keeps the cost of growth constant as well.
fn grow<T>(vector: &mut Vec<T>, more: usize) {
    if vector.capacity() - vector.len() < more {
        vector.reserve_exact(more.max(vector.len() / 8));
    }
}
