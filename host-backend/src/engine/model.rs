//! The engine against a simple model of the driver and of what must be in the pages, driven by
//! random sequences of what drivers do, rightly and wrongly.

mod promises;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use vmsrs_protocol::control::{
    AddExtent, DOMAIN_DAMAGED, DOMAIN_MIRROR, DeleteRecord, Extent, OpenApp, OpenDomain,
};
use vmsrs_protocol::event::EVENT_DAMAGE;
use vmsrs_protocol::incident::{DroppedDraft, IncidentReport, KIND_MEMORY};
use vmsrs_protocol::seal::{SEAL_LAST, SealRecord};
use vmsrs_protocol::{DAMAGED_FRAME, IN_POOL, KEY_MAX, NAME_MAX, NONE, ZERO_FRAME};

use super::mock::MockMemory;
use super::{
    Engine, EngineConfig, FrameState, Position, Refusal, Retry, Scope, SealOutcome, SealedWrite,
    handle_message,
};
use crate::control::{IncidentOutcome, Restored, snapshot};

const CONFIG: EngineConfig = EngineConfig {
    vault_frames: 200,
    pool_frames: 40,
    batch_records: 64,
    incidents: 5,
};

/// What is wrong with a message of a batch.
#[derive(Clone, Copy, Debug)]
enum Damage {
    StaleFrame,
    ForeignPage,
    PageOutside,
    PageTwice,
    FrameTwice,
    FrameOutside,
    UnknownDomain,
    UnknownApp,
    UnknownFlag,
}

#[derive(Clone, Debug)]
enum Step {
    OpenDomain {
        app: u8,
        key: u8,
        mirror: bool,
        /// Of the first extent.
        pages: u32,
    },
    AddExtent(u8, u8, u32),
    /// A domain is deleted with the next batch, or all of it but its first extent; or the guest ends before the batch is
    /// there.
    Delete {
        domain: u8,
        clear: bool,
        reset: bool,
    },
    /// A commit of these pages.
    Commit(Vec<u8>),
    /// The next message of the batch, or the first of one of all that is committed: how many records it
    /// has at most; what is wrong with it.
    Seal(usize, Option<Damage>),
    Incident(u8, bool),
    SealedWrite(u32),
    Cleanse(u32),
    Reset,
    /// The host cannot write the vault for the message after so many.
    FailSeal(u32),
    /// The memory of a committed page in the pool breaks.
    BreakPool(u8),
    /// The memory of a vault frame that holds nothing breaks, and there is no other for it.
    BreakVault(u8),
    /// The content of a sealed page, or its copy, goes wrong: by a flipped bit or by broken memory.
    Corrupt {
        page: u8,
        copy: bool,
        poison: bool,
    },
    /// All sealed pages are checked, so many at a time.
    Scrub(u32),
    /// The guest touches the memory of a page whatever its state, and the hardware stops that.
    Touch(u8),
    Bytes(Vec<u8>, u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let damage = prop_oneof![
        Just(Damage::StaleFrame),
        Just(Damage::ForeignPage),
        Just(Damage::PageOutside),
        Just(Damage::PageTwice),
        Just(Damage::FrameTwice),
        Just(Damage::FrameOutside),
        Just(Damage::UnknownDomain),
        Just(Damage::UnknownApp),
        Just(Damage::UnknownFlag),
    ];
    let step = prop_oneof![
        2 => (0u8..2, 0u8..4, prop::bool::weighted(0.5), 0u32..12)
            .prop_map(|(app, key, mirror, pages)| Step::OpenDomain { app, key, mirror, pages }),
        3 => (0u8..2, 0u8..4, prop_oneof![3 => 1u32..12, 1 => 12u32..80])
            .prop_map(|(app, domain, pages)| Step::AddExtent(app, domain, pages)),
        3 => (any::<u8>(), any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(domain, clear, reset)| Step::Delete { domain, clear, reset }),
        12 => prop::collection::vec(any::<u8>(), 1..6).prop_map(Step::Commit),
        10 => (1usize..20, prop::option::weighted(0.2, damage))
            .prop_map(|(records, damage)| Step::Seal(records, damage)),
        3 => (0u8..12, any::<bool>()).prop_map(|(count, wrong)| Step::Incident(count, wrong)),
        1 => (0u32..210).prop_map(Step::SealedWrite),
        4 => (1u32..64).prop_map(Step::Cleanse),
        1 => Just(Step::Reset),
        1 => (0u32..4).prop_map(Step::FailSeal),
        1 => any::<u8>().prop_map(Step::BreakPool),
        1 => any::<u8>().prop_map(Step::BreakVault),
        5 => (any::<u8>(), any::<bool>(), any::<bool>())
            .prop_map(|(page, copy, poison)| Step::Corrupt { page, copy, poison }),
        3 => (1u32..20).prop_map(Step::Scrub),
        1 => any::<u8>().prop_map(Step::Touch),
        1 => (prop::collection::vec(any::<u8>(), 0..64), any::<u16>())
            .prop_map(|(bytes, room)| Step::Bytes(bytes, room)),
    ];
    prop::collection::vec(step, 1..120)
}

/// App and page.
type PageName = (u32, u32);

/// A committed version in the pool.
#[derive(Clone, Copy, Debug)]
struct Pending {
    domain: u32,
    frame: u32,
    content: u64,
}

/// A batch that is on its way.
#[derive(Debug, Default)]
struct Batch {
    pages: Vec<(PageName, Pending)>,
    /// The vault frames of those that were sent.
    frames: Vec<u32>,
}

/// The driver, and what must be true.
struct World {
    engine: Engine,
    memory: MockMemory,
    /// Free frames of the pool.
    pool: Vec<u32>,
    /// Extents by app and domain.
    extents: BTreeMap<(u32, u32), Vec<Extent>>,
    /// Committed pages that no batch has taken yet.
    pending: BTreeMap<PageName, Pending>,
    batch: Option<Batch>,
    /// Frame and content of every sealed page.
    pages: BTreeMap<PageName, (u32, u64)>,
    /// Pages and contents of every commit that was ever tried.
    commits: Vec<Vec<(PageName, u64)>>,
    /// The pages after the step before.
    former: promises::Pages,
    /// Frames of pages, and of copies, whose content went wrong and was not checked since; with the
    /// page.
    wrong: BTreeMap<u32, PageName>,
    /// Pages whose content is lost.
    lost: BTreeSet<PageName>,
    next_content: u64,
    next_incident: u64,
    /// A call of the memory has been made to fail: the host may refuse.
    failed: bool,
}

impl World {
    fn new() -> Self {
        Self {
            engine: Engine::new(CONFIG).unwrap(),
            memory: MockMemory::new(&CONFIG),
            pool: (0..CONFIG.pool_frames).collect(),
            extents: BTreeMap::new(),
            pending: BTreeMap::new(),
            batch: None,
            pages: BTreeMap::new(),
            commits: Vec::new(),
            former: BTreeMap::new(),
            wrong: BTreeMap::new(),
            lost: BTreeSet::new(),
            next_content: 1,
            next_incident: 1,
            failed: false,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::OpenDomain {
                app,
                key,
                mirror,
                pages,
            } => self.open_domain(*app, *key, *mirror, *pages),
            Step::AddExtent(app, domain, pages) => self.add_extent(*app, *domain, *pages),
            Step::Delete {
                domain,
                clear,
                reset,
            } => self.delete(*domain, *clear, *reset),
            Step::Commit(choices) => self.commit(choices),
            Step::Seal(records, damage) => self.seal(*records, *damage),
            Step::Incident(count, wrong) => self.incident(usize::from(*count), *wrong),
            Step::SealedWrite(frame) => {
                let write = SealedWrite {
                    frame: *frame,
                    ..SealedWrite::default()
                };
                let event = self.engine.sealed_write(Duration::ZERO, write);
                assert_eq!(event.incident % 2, 0);
            }
            Step::Cleanse(frames) => self.cleanse(*frames),
            Step::Reset => self.reset(),
            Step::FailSeal(calls) => {
                self.memory.fails_after = Some(*calls);
                self.failed = true;
            }
            Step::BreakPool(choice) => {
                let index = usize::from(*choice) % self.pending.len().max(1);
                if let Some((_, pending)) = self.pending.iter().nth(index) {
                    self.memory.broken_pool[pending.frame as usize] = true;
                }
            }
            Step::BreakVault(choice) => self.break_vault(*choice),
            Step::Corrupt { page, copy, poison } => self.corrupt(*page, *copy, *poison),
            Step::Scrub(pages) => self.scrub(*pages),
            Step::Touch(choice) => self.touch(*choice),
            Step::Bytes(bytes, room) => {
                let room = usize::from(*room);
                let reply = handle_message(
                    &mut self.engine,
                    &mut self.memory,
                    Duration::ZERO,
                    bytes,
                    room,
                );
                assert!(reply.bytes.len() <= room);
            }
        }
    }

    fn cleanse(&mut self, frames: u32) {
        let memory = &mut self.memory;
        let broken = memory.unwritable.contains(&true);
        let result = self.engine.cleanse(frames, |frame| memory.wipe(frame));
        assert!(result.is_ok() || broken);
    }

    fn reset(&mut self) {
        let before = self.engine.device_config();
        self.engine.reset();
        self.numbers_never_come_again(&before);
        self.next_incident = self.engine.device_config().incident_base;
        self.pending.clear();
        self.batch = None;
        self.pool = (0..CONFIG.pool_frames).collect();
        self.memory.broken_pool.fill(false);
    }

    /// A page that was committed, if there is one.
    fn choose(&self, choice: u8) -> Option<((u32, u32), u32)> {
        let index = usize::from(choice) % self.pages.len().max(1);
        let (&page, &(frame, _)) = self.pages.iter().nth(index)?;
        Some((page, frame))
    }

    fn corrupt(&mut self, choice: u8, copy: bool, poison: bool) {
        let Some((page, frame)) = self.choose(choice) else {
            return;
        };
        let target = match copy {
            true => self.engine.store.frames.mirror(frame),
            false => Some(frame),
        };
        let Some(target) = target else { return };
        // A second bit in the same frame would only be the same error again, or none.
        if self.lost.contains(&page) || self.wrong.insert(target, page).is_some() {
            return;
        }
        match poison {
            true => self.memory.broken_vault[target as usize] = true,
            false => self.memory.vault[target as usize][2048] ^= 1 << 5,
        }
    }

    fn break_vault(&mut self, choice: u8) {
        let frame = u32::from(choice) % CONFIG.vault_frames;
        if let Some(FrameState::Free | FrameState::Retired) = self.engine.frame_state(frame) {
            self.memory.unwritable[frame as usize] = true;
        }
    }

    /// What a check must make of a page.
    fn expect_check(&mut self, page: (u32, u32), frame: u32) {
        let copy = self.engine.store.frames.mirror(frame);
        let has_copy = copy.is_some_and(|copy| !self.wrong.contains_key(&copy));
        if self.wrong.contains_key(&frame) && !has_copy {
            self.lost.insert(page);
            return;
        }
        self.wrong.remove(&frame);
        if let Some(copy) = copy {
            self.wrong.remove(&copy);
        }
    }

    fn scrub(&mut self, limit: u32) {
        let pages: Vec<_> = self
            .pages
            .iter()
            .map(|(&p, &(frame, _))| (p, frame))
            .collect();
        let before = self.lost.len();
        for &(page, frame) in &pages {
            if !self.lost.contains(&page) {
                self.expect_check(page, frame);
            }
        }
        let mut next = Some(Position::default());
        let mut checked = 0;
        while let Some(position) = next {
            let turn = self.engine.scrub(
                Duration::ZERO,
                Scope::default(),
                position,
                limit,
                &mut self.memory,
            );
            assert!(turn.looked <= u64::from(limit.max(1)) + 1);
            checked += turn.found.checked;
            next = turn.next;
        }
        assert_eq!(checked, pages.len() as u64);
        self.expect_events(self.lost.len() - before);
    }

    fn touch(&mut self, choice: u8) {
        let Some((page, frame)) = self.choose(choice) else {
            return;
        };
        let before = self.lost.len();
        if !self.lost.contains(&page) {
            self.expect_check(page, frame);
        }
        let retry = self
            .engine
            .poisoned(Duration::ZERO, frame, &mut self.memory);
        let expected = match self.lost.contains(&page) {
            false => Retry::Now,
            true => Retry::Later,
        };
        assert_eq!(retry, expected);
        self.expect_events(self.lost.len() - before);
    }

    /// Every loss is told to the driver once.
    fn expect_events(&mut self, losses: usize) {
        let events = self.engine.take_events();
        assert_eq!(events.len(), losses);
        for event in events {
            assert_eq!(event.kind, EVENT_DAMAGE);
            let detail = snapshot::incident(&self.engine, event.incident);
            // The incidents that are kept are few.
            if let Some(detail) = detail {
                assert_eq!(detail.summary.outcome, IncidentOutcome::Lost);
                assert_eq!(detail.summary.address, Some(event.address));
            }
        }
    }

    fn open_domain(&mut self, app: u8, key: u8, mirror: bool, pages: u32) {
        let mut name = [0; NAME_MAX];
        name[0] = b'a' + app;
        let reply = self.engine.open_app(&OpenApp { name }).unwrap();
        let mut message = OpenDomain {
            app: reply.app,
            key_length: 1,
            key: [0; KEY_MAX],
            flags: if mirror { DOMAIN_MIRROR } else { 0 },
            pages,
            // Whether or not a deleted domain has had it.
            reuse: key.into(),
        };
        message.key[0] = key;
        let domains = self.engine.store.domains();
        let reply = match self.engine.open_domain(&message) {
            Err(Refusal::NoSpace(_)) if mirror || pages > 0 => {
                assert_eq!(self.engine.store.domains(), domains);
                (message.flags, message.pages) = (0, 0);
                self.engine.open_domain(&message).unwrap()
            }
            reply => reply.unwrap(),
        };
        assert!(message.flags == 0 || reply.flags & DOMAIN_MIRROR != 0);
        let is_lost = |&(app, page): &(u32, u32)| {
            app == message.app
                && self.engine.store.apps[app as usize].owner(page) == Some(reply.domain)
        };
        assert_eq!(
            reply.flags & DOMAIN_DAMAGED != 0,
            self.lost.iter().any(is_lost)
        );
        let extents = self.extents.entry((message.app, reply.domain)).or_default();
        if extents.is_empty() && message.pages > 0 {
            assert_eq!(reply.first.pages, pages.next_multiple_of(4));
            extents.push(reply.first);
        }
        assert_eq!(reply.extents as usize, extents.len());
        let first = extents.first().copied().unwrap_or_default();
        assert_eq!(reply.first, first);
        for (page, frame) in (first.page..).zip(reply.frames) {
            let page = (message.app, page);
            let expected = match self.pages.get(&page) {
                Some(_) if first.pages == 0 => NONE,
                Some(_) if self.lost.contains(&page) => DAMAGED_FRAME,
                Some(&(frame, _)) => frame,
                None => NONE,
            };
            assert_eq!(frame, expected);
        }
        let again = self.engine.open_domain(&message).unwrap();
        assert_eq!(again, reply);
    }

    fn add_extent(&mut self, app: u8, domain: u8, pages: u32) {
        let (app, domain) = (u32::from(app), u32::from(domain));
        let known = self.extents.get(&(app, domain));
        let message = AddExtent {
            app,
            domain,
            index: known.map_or(0, |extents| extents.len() as u32),
            pages,
        };
        match (self.engine.add_extent(&message), known.is_some()) {
            (Ok(extent), true) => {
                assert_eq!(extent.pages, pages.next_multiple_of(4));
                assert_eq!(self.engine.add_extent(&message), Ok(extent));
                self.extents.entry((app, domain)).or_default().push(extent);
            }
            (Err(Refusal::NoSpace(_)), true) | (Err(Refusal::NotFound(_)), false) => {}
            (result, known) => panic!("{result:?} for a domain that is known: {known}"),
        }
    }

    /// Pages of all domains, in an order that steps choose from.
    fn all_pages(&self) -> Vec<(u32, u32, u32)> {
        let mut pages = Vec::new();
        for (&(app, domain), extents) in &self.extents {
            for extent in extents {
                for page in extent.page..extent.page + extent.pages {
                    pages.push((app, domain, page));
                }
            }
        }
        pages
    }

    /// Commits pages into the pool. A page that was committed there before gets another version.
    fn commit(&mut self, choices: &[u8]) {
        let all = self.all_pages();
        let mut commit = BTreeMap::new();
        for &choice in choices {
            if all.is_empty() || self.pool.is_empty() {
                break;
            }
            let (app, domain, page) = all[usize::from(choice) % all.len()];
            if commit.contains_key(&(app, page)) {
                continue;
            }
            let frame = self.pool.remove(usize::from(choice) % self.pool.len());
            let content = self.next_content;
            self.next_content += 1;
            self.memory.guest_write(frame, content);
            self.memory.broken_pool[frame as usize] = false;
            let version = Pending {
                domain,
                frame,
                content,
            };
            if let Some(former) = self.pending.insert((app, page), version) {
                self.pool.push(former.frame);
            }
            commit.insert((app, page), content);
        }
        self.commits.push(commit.into_iter().collect());
    }

    /// How the driver names the sealed version of a page.
    fn sealed_frame(&self, page: PageName) -> u32 {
        match self.pages.get(&page) {
            None => NONE,
            Some(_) if self.lost.contains(&page) => DAMAGED_FRAME,
            Some(&(frame, _)) => frame,
        }
    }

    /// A page of a batch, as the driver sends it.
    fn record(&self, (app, page): PageName, pending: Pending) -> SealRecord {
        SealRecord {
            app,
            domain: pending.domain,
            page,
            pool_frame: pending.frame,
            vault_frame: self.sealed_frame((app, page)),
            reserved: 0,
        }
    }

    fn seal(&mut self, limit: usize, damage: Option<Damage>) {
        let mut batch = self.batch.take().unwrap_or_else(|| Batch {
            pages: std::mem::take(&mut self.pending).into_iter().collect(),
            frames: Vec::new(),
        });
        let rest = &batch.pages[batch.frames.len()..];
        let sent = &rest[..rest.len().min(limit)];
        let mut flags = match sent.len() == rest.len() {
            true => SEAL_LAST,
            false => 0,
        };
        let mut records: Vec<SealRecord> = sent
            .iter()
            .map(|&(page, pending)| self.record(page, pending))
            .collect();
        let is_wrong = damage.is_some_and(|damage| self.damage(damage, &mut records, &mut flags));
        let sent: Vec<Pending> = sent.iter().map(|&(_, pending)| pending).collect();
        self.memory.copies.fill(0);
        let outcome = self.send(&records, flags);
        if let Some(refusal) = outcome.refusal {
            let is_excused = match refusal {
                Refusal::Host => self.failed,
                // Frames that cannot be written are missing.
                Refusal::NoSpace(_) => self.engine.has_unwiped(),
                _ => false,
            };
            assert!(is_wrong || is_excused, "{refusal}");
            self.take_back(batch);
            return;
        }
        assert!(!is_wrong, "{damage:?}");
        assert_eq!(outcome.frames.len(), sent.len());
        for pending in &sent {
            assert_eq!(self.memory.copies[pending.frame as usize], 1);
            // The host has its copy: what the guest does from now on changes nothing.
            self.memory.guest_write(pending.frame, u64::MAX);
        }
        batch.frames.extend(outcome.frames);
        if flags & SEAL_LAST == 0 {
            assert!(outcome.damaged.is_empty());
            self.batch = Some(batch);
        } else {
            self.finish(batch, &outcome.damaged);
        }
    }

    fn delete(&mut self, choice: u8, clear: bool, reset: bool) {
        let index = usize::from(choice) % self.extents.len().max(1);
        let (Some((&(app, domain), extents)), None) = (self.extents.iter().nth(index), &self.batch)
        else {
            return;
        };
        let kept = usize::from(clear).min(extents.len());
        let gone = extents[kept..].to_vec();
        let is_gone = |page: &PageName| {
            let has = |extent: &Extent| (extent.page..extent.page + extent.pages).contains(&page.1);
            page.0 == app && gone.iter().any(has)
        };
        let record = DeleteRecord {
            app,
            domain,
            extents: if clear { 1 } else { NONE },
            reserved: 0,
        };
        self.engine.delete(&[record]).unwrap();
        if reset {
            self.reset();
            return;
        }
        // The driver takes its commits out of the batch.
        let (dropped, pages): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|(page, _)| is_gone(page));
        let mut batch = Batch {
            pages,
            frames: Vec::new(),
        };
        let records: Vec<SealRecord> = batch
            .pages
            .iter()
            .map(|&(page, pending)| self.record(page, pending))
            .collect();
        let outcome = self.send(&records, SEAL_LAST);
        if outcome.refusal.is_some() {
            assert!(self.failed || self.engine.has_unwiped());
            batch.pages.extend(dropped);
            self.take_back(batch);
            return;
        }
        self.pool
            .extend(dropped.iter().map(|(_, pending)| pending.frame));
        batch.frames = outcome.frames;
        self.finish(batch, &outcome.damaged);
        self.pages.retain(|page, _| !is_gone(page));
        self.former.retain(|page, _| !is_gone(page));
        self.lost.retain(|page| !is_gone(page));
        self.wrong.retain(|_, page| !is_gone(page));
        for commit in &mut self.commits {
            commit.retain(|(page, _)| !is_gone(page));
        }
        match self.extents.get_mut(&(app, domain)) {
            Some(extents) if clear => extents.truncate(kept),
            _ => drop(self.extents.remove(&(app, domain))),
        }
    }

    /// The pages of a batch are sealed.
    fn finish(&mut self, batch: Batch, damaged: &[u32]) {
        let mut losses = 0;
        for ((page, pending), frame) in batch.pages.into_iter().zip(batch.frames) {
            self.pool.push(pending.frame);
            self.lost.remove(&page);
            // The frames of the former version may be in use again at once.
            self.wrong.retain(|_, owner| *owner != page);
            if frame == DAMAGED_FRAME {
                let frame = self.engine.store.apps[page.0 as usize].frame(page.1);
                assert!(damaged.contains(&frame));
                self.pages.insert(page, (frame, 0));
                self.lost.insert(page);
                losses += 1;
            } else {
                self.pages.insert(page, (frame, pending.content));
            }
        }
        assert_eq!(damaged.len(), losses);
        self.expect_events(losses);
    }

    /// A refused batch is committed still, unless there are newer versions. (The real driver gives up.)
    fn take_back(&mut self, batch: Batch) {
        for (page, pending) in batch.pages {
            self.memory.guest_write(pending.frame, pending.content);
            match self.pending.entry(page) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(pending);
                }
                std::collections::btree_map::Entry::Occupied(_) => self.pool.push(pending.frame),
            }
        }
    }

    fn send(&mut self, records: &[SealRecord], flags: u32) -> SealOutcome {
        self.engine
            .seal(Duration::ZERO, records, flags, &mut self.memory)
            .unwrap()
    }

    /// Spoils a message; returns whether that was possible.
    fn damage(&self, damage: Damage, records: &mut Vec<SealRecord>, flags: &mut u32) -> bool {
        let (Some(&first), Some(last)) = (records.first(), records.len().checked_sub(1)) else {
            return false;
        };
        let other = self
            .all_pages()
            .into_iter()
            .find(|&(app, domain, _)| app == first.app && domain != first.domain);
        match damage {
            Damage::StaleFrame => records[0].vault_frame = ZERO_FRAME,
            Damage::ForeignPage => match other {
                Some((_, _, page)) => records[0].page = page,
                None => return false,
            },
            Damage::PageOutside => records[last].page = u32::MAX,
            Damage::PageTwice => records.push(SealRecord {
                pool_frame: match self.pool.first() {
                    Some(&frame) => frame,
                    None => return false,
                },
                ..first
            }),
            Damage::FrameTwice => {
                if last == 0 {
                    return false;
                }
                records[last].pool_frame = first.pool_frame;
            }
            Damage::FrameOutside => records[last].pool_frame = CONFIG.pool_frames,
            Damage::UnknownDomain => records[last].domain = NONE,
            Damage::UnknownApp => records[last].app = 63,
            Damage::UnknownFlag => *flags |= 2,
        }
        true
    }

    fn incident(&mut self, count: usize, wrong: bool) {
        let all = self.all_pages();
        let count = count.min(self.pool.len()).min(all.len());
        let Some(&(app, ..)) = all.first() else {
            return;
        };
        let mut restored = Restored::Sealed;
        let mut drafts = Vec::new();
        for (&(app, domain, page), &frame) in all
            .iter()
            .filter(|page| page.0 == app)
            .zip(&self.pool[..count])
        {
            let flying = self.batch.iter().flat_map(|batch| &batch.pages);
            let in_pool = self.pending.get(&(app, page)).or_else(|| {
                flying
                    .into_iter()
                    .find(|(name, _)| *name == (app, page))
                    .map(|(_, pending)| pending)
            });
            let committed = match in_pool {
                Some(pending) => {
                    restored = Restored::Committed;
                    IN_POOL | pending.frame
                }
                None => self.sealed_frame((app, page)),
            };
            drafts.push(DroppedDraft {
                domain,
                page,
                pool_frame: frame,
                committed,
            });
        }
        let report = IncidentReport {
            // An even number is not the driver's to give.
            incident: self.next_incident + u64::from(wrong),
            app,
            domain: NONE,
            address_domain: NONE,
            kind: KIND_MEMORY,
            drafts: drafts.len() as u32,
            ..IncidentReport::default()
        };
        let result = self
            .engine
            .report(Duration::ZERO, &report, &drafts, &self.memory);
        assert_eq!(result.is_err(), wrong, "{result:?}");
        if wrong {
            return;
        }
        self.next_incident += 2;
        let facts = snapshot::incident(&self.engine, report.incident).unwrap();
        let request = facts.request().unwrap().clone();
        assert_eq!(request.drafts.len(), drafts.len());
        assert_eq!(request.restored, restored);
        // The checks come later.
        self.expect_events(0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_promises_hold_whatever_the_driver_does(steps in steps()) {
        let mut world = World::new();
        // Most random sequences would otherwise start with refusals only.
        world.open_domain(0, 0, false, 0);
        world.add_extent(0, 0, 8);
        world.open_domain(0, 1, true, 0);
        world.add_extent(0, 1, 8);
        for step in &steps {
            world.step(step);
            world.check();
        }
        world.everybody_else_can_go_on();
        world.check();
    }
}
