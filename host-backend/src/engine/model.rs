//! The engine against a simple model of the driver and of what must be in the pages, driven by
//! random sequences of what drivers do, rightly and wrongly.

mod promises;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use vmsrs_protocol::control::{
    AddExtent, DOMAIN_DAMAGED, DOMAIN_MIRROR, Extent, OpenApp, OpenDomain,
};
use vmsrs_protocol::event::EVENT_DAMAGE;
use vmsrs_protocol::incident::{DroppedDraft, IncidentReport, KIND_MEMORY};
use vmsrs_protocol::seal::{SEAL_LAST, SealRecord};
use vmsrs_protocol::{FrameRun, KEY_MAX, NAME_MAX, NONE, ZERO_FRAME};

use super::mock::MockMemory;
use super::runs::frames_of;
use super::{
    Call, Engine, EngineConfig, FrameState, Position, Refusal, Retry, Scope, SealOutcome,
    SealedWrite, handle_message,
};
use crate::control::{IncidentOutcome, Restored, snapshot};

const CONFIG: EngineConfig = EngineConfig {
    window_frames: 200,
    pool_frames: 40,
    batch_records: 64,
    evidence_frames: 8,
    incidents: 5,
};
const RUNS: usize = 16;

/// What is wrong with the last commit of a message.
#[derive(Clone, Copy, Debug)]
enum Damage {
    StaleFrame,
    ForeignPage,
    PageOutside,
    FrameTwice,
    FrameNotGranted,
    SealedFrame,
    NoTag,
    TwoTags,
    UnknownDomain,
    UnknownApp,
    UnknownFlag,
}

#[derive(Clone, Debug)]
enum Step {
    /// App, key, whether a mirror is asked for.
    OpenDomain(u8, u8, bool),
    AddExtent(u8, u8, u32),
    Grant(u32),
    /// Commits, each of these pages; what is wrong with the last; how many records of the last are
    /// kept back for a later message.
    Seal(Vec<Vec<u8>>, Option<Damage>, usize),
    Discard(u8, bool),
    Incident(u8, bool),
    SealedWrite(u32),
    Cleanse(u32),
    Reset,
    FailProtection(u32),
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
        Just(Damage::FrameTwice),
        Just(Damage::FrameNotGranted),
        Just(Damage::SealedFrame),
        Just(Damage::NoTag),
        Just(Damage::TwoTags),
        Just(Damage::UnknownDomain),
        Just(Damage::UnknownApp),
        Just(Damage::UnknownFlag),
    ];
    let commits = prop::collection::vec(prop::collection::vec(any::<u8>(), 1..6), 1..4);
    let step = prop_oneof![
        2 => (0u8..2, 0u8..4, prop::bool::weighted(0.5))
            .prop_map(|(app, key, mirror)| Step::OpenDomain(app, key, mirror)),
        3 => (0u8..2, 0u8..4, prop_oneof![3 => 1u32..12, 1 => 12u32..80])
            .prop_map(|(app, domain, pages)| Step::AddExtent(app, domain, pages)),
        4 => (1u32..50).prop_map(Step::Grant),
        10 => (commits, prop::option::weighted(0.3, damage), prop_oneof![3 => Just(0), 1 => 1usize..4])
            .prop_map(|(commits, damage, kept)| Step::Seal(commits, damage, kept)),
        2 => (1u8..8, any::<bool>()).prop_map(|(count, wrong)| Step::Discard(count, wrong)),
        3 => (0u8..12, any::<bool>()).prop_map(|(count, wrong)| Step::Incident(count, wrong)),
        1 => (0u32..210).prop_map(Step::SealedWrite),
        4 => (1u32..64).prop_map(Step::Cleanse),
        1 => Just(Step::Reset),
        1 => (0u32..4).prop_map(Step::FailProtection),
        5 => (any::<u8>(), any::<bool>(), any::<bool>())
            .prop_map(|(page, copy, poison)| Step::Corrupt { page, copy, poison }),
        3 => (1u32..20).prop_map(Step::Scrub),
        1 => any::<u8>().prop_map(Step::Touch),
        1 => (prop::collection::vec(any::<u8>(), 0..64), any::<u16>())
            .prop_map(|(bytes, room)| Step::Bytes(bytes, room)),
    ];
    prop::collection::vec(step, 1..120)
}

/// The driver, and what must be true.
struct World {
    engine: Engine,
    memory: MockMemory,
    /// Frames in the driver's hands that no commit names.
    pool: Vec<u32>,
    /// Extents by app and domain.
    extents: BTreeMap<(u32, u32), Vec<Extent>>,
    /// Frame and content of every committed page.
    pages: BTreeMap<(u32, u32), (u32, u64)>,
    /// Pages and contents of every commit that was ever tried.
    commits: Vec<Vec<((u32, u32), u64)>>,
    /// The pages after the step before.
    former: promises::Pages,
    /// What dropped drafts held.
    evidence: BTreeMap<u32, u64>,
    /// Frames of pages, and of copies, whose content went wrong and was not checked since; with the
    /// page.
    wrong: BTreeMap<u32, (u32, u32)>,
    /// Pages whose content is lost.
    lost: BTreeSet<(u32, u32)>,
    /// The commit whose last records the driver has kept back: all its records, and how many of
    /// them the host has.
    unfinished: Option<(Vec<SealRecord>, usize)>,
    next_content: u64,
    next_incident: u64,
    next_tag: u64,
    /// Changes of protection have been made to fail: the host may refuse.
    failed: bool,
    /// The last reset met such a failure: frames that the driver no longer knows stay granted, and
    /// some of them are read-only.
    leftover: bool,
}

impl World {
    fn new() -> Self {
        Self {
            engine: Engine::new(CONFIG).unwrap(),
            memory: MockMemory::new(CONFIG.window_frames),
            pool: Vec::new(),
            extents: BTreeMap::new(),
            pages: BTreeMap::new(),
            commits: Vec::new(),
            former: BTreeMap::new(),
            evidence: BTreeMap::new(),
            wrong: BTreeMap::new(),
            lost: BTreeSet::new(),
            unfinished: None,
            next_content: 1,
            next_incident: 1,
            next_tag: 1,
            failed: false,
            leftover: false,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::OpenDomain(app, key, mirror) => self.open_domain(*app, *key, *mirror),
            Step::AddExtent(app, domain, pages) => self.add_extent(*app, *domain, *pages),
            Step::Grant(frames) => {
                let granted = self.engine.grant(*frames, RUNS, &mut self.memory);
                match granted {
                    Ok(runs) => self.take_grant(&runs),
                    Err(error) => assert_eq!(error, Refusal::Host),
                }
            }
            Step::Seal(commits, damage, kept) => self.seal(commits, *damage, *kept),
            Step::Discard(count, wrong) => self.discard(usize::from(*count), *wrong),
            Step::Incident(count, wrong) => self.incident(usize::from(*count), *wrong),
            Step::SealedWrite(frame) => {
                let write = SealedWrite {
                    frame: *frame,
                    ..SealedWrite::default()
                };
                let event = self.engine.sealed_write(Duration::ZERO, write);
                assert_eq!(event.incident % 2, 0);
            }
            Step::Cleanse(frames) => {
                let retired = self.engine.take_retired(*frames);
                self.memory.wipe(&retired);
                self.engine.cleansed(retired);
            }
            Step::Reset => {
                let before = self.engine.device_config();
                let failing = self.memory.fails_after.is_some();
                self.engine.reset(&mut self.memory);
                self.leftover = failing && self.memory.fails_after.is_none();
                self.numbers_never_come_again(&before);
                let after = self.engine.device_config();
                self.next_tag = after.tag_base;
                self.next_incident = after.incident_base;
                self.pool.clear();
                self.unfinished = None;
            }
            Step::FailProtection(calls) => {
                self.memory.fails_after = Some(*calls);
                self.failed = true;
            }
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
            true => self.memory.poisoned[target as usize] = true,
            false => self.memory.content[target as usize] ^= 1 << 40,
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

    fn open_domain(&mut self, app: u8, key: u8, mirror: bool) {
        let mut name = [0; NAME_MAX];
        name[0] = b'a' + app;
        let reply = self.engine.open_app(&OpenApp { name }).unwrap();
        let mut message = OpenDomain {
            app: reply.app,
            key_length: 1,
            key: [0; KEY_MAX],
            flags: if mirror { DOMAIN_MIRROR } else { 0 },
        };
        message.key[0] = key;
        let reply = match self.engine.open_domain(&message) {
            Err(Refusal::NoSpace(_)) if mirror => {
                message.flags = 0;
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
        assert_eq!(reply.extents as usize, extents.len());
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

    fn take_grant(&mut self, runs: &[FrameRun]) {
        assert!(runs.len() <= RUNS);
        for frame in runs.iter().copied().flat_map(frames_of) {
            assert_eq!(self.memory.content[frame as usize], 0, "frame {frame}");
            assert!(self.memory.writable[frame as usize]);
            self.pool.push(frame);
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

    /// Makes drafts of `choices` and the records that commit them.
    fn commit(
        &mut self,
        choices: &[u8],
        current: &mut BTreeMap<(u32, u32), (u32, u64)>,
    ) -> Vec<SealRecord> {
        let all = self.all_pages();
        let tag = self.next_tag;
        self.next_tag += 1;
        let mut records: Vec<SealRecord> = Vec::new();
        for &choice in choices {
            if all.is_empty() || self.pool.is_empty() {
                break;
            }
            let (app, domain, page) = all[usize::from(choice) % all.len()];
            if records
                .iter()
                .any(|record| (record.app, record.page) == (app, page))
            {
                continue;
            }
            let new_frame = self.pool.remove(usize::from(choice) % self.pool.len());
            let old = current.get(&(app, page)).map_or(NONE, |&(frame, _)| frame);
            // A frame that a failed change of protection has left read-only keeps its zeros.
            self.memory.guest_write(new_frame, self.next_content);
            let content = self.memory.content[new_frame as usize];
            self.next_content += 1;
            current.insert((app, page), (new_frame, content));
            records.push(SealRecord {
                tag,
                app,
                domain,
                page,
                old_frame: old,
                new_frame,
                flags: 0,
            });
        }
        if let Some(last) = records.last_mut() {
            last.flags = SEAL_LAST;
        }
        let written = records.iter().map(|record| {
            let content = self.memory.content[record.new_frame as usize];
            ((record.app, record.page), content)
        });
        self.commits
            .push(written.filter(|&(_, content)| content != 0).collect());
        records
    }

    fn seal(&mut self, commits: &[Vec<u8>], damage: Option<Damage>, kept: usize) {
        let mut current = self.pages.clone();
        let mut message = Vec::new();
        // The rest of the unfinished commit comes first, as commits do not mix.
        let unfinished = self.unfinished.take();
        if let Some((records, sent)) = &unfinished {
            message.extend_from_slice(&records[*sent..]);
            apply(&mut current, records, &self.memory);
        }
        let mut states = Vec::new();
        let mut last_commit = Vec::new();
        for choices in commits {
            let before = current.clone();
            let records = self.commit(choices, &mut current);
            if !records.is_empty() {
                states.push((message.len(), before));
                message.extend_from_slice(&records);
                last_commit = records;
            }
        }
        let Some((start, before_last)) = states.pop() else {
            // Nothing new to commit: send what was kept back.
            let outcome = self.send(&message);
            self.finish(&message, outcome, unfinished, current, Vec::new());
            return;
        };
        if let Some(damage) = damage
            && self.damage(damage, &mut message[start..])
        {
            let outcome = self.send(&message);
            if outcome.refusal == Some(Refusal::Host) {
                self.finish(&message, outcome, unfinished, current, Vec::new());
            } else {
                assert!(outcome.refusal.is_some(), "{damage:?}");
                assert_eq!(outcome.taken as usize, start, "{damage:?}");
                self.pages = before_last;
                self.take_grant(&outcome.granted);
            }
            // Frames of the refused commit are still the driver's.
            self.give_back(&message);
            return;
        }
        let kept = kept.min(last_commit.len() - 1);
        message.truncate(message.len() - kept);
        let sent = last_commit.len() - kept;
        let outcome = self.send(&message);
        if kept == 0 {
            self.finish(&message, outcome, unfinished, current, Vec::new());
        } else {
            self.finish(
                &message,
                outcome,
                unfinished,
                before_last,
                last_commit.clone(),
            );
            if self.unfinished.is_none() {
                self.give_back(&last_commit);
            } else if let Some((_, have)) = &mut self.unfinished
                && self.engine.staging.len() == sent
            {
                *have = sent;
            }
        }
    }

    fn send(&mut self, message: &[SealRecord]) -> SealOutcome {
        let call = Call {
            at: Duration::ZERO,
            max_runs: RUNS,
        };
        let outcome = self.engine.seal(call, message, &mut self.memory).unwrap();
        assert!(outcome.damaged.is_empty());
        outcome
    }

    /// Checks the outcome of a message that must be taken, unless the host cannot.
    fn finish(
        &mut self,
        message: &[SealRecord],
        outcome: SealOutcome,
        unfinished: Option<(Vec<SealRecord>, usize)>,
        pages: BTreeMap<(u32, u32), (u32, u64)>,
        rest: Vec<SealRecord>,
    ) {
        match outcome.refusal {
            None => {
                assert_eq!(outcome.taken as usize, message.len());
                self.pages = pages;
                self.take_grant(&outcome.granted);
                if !rest.is_empty() {
                    let sent = self.engine.staging.len();
                    self.unfinished = Some((rest, sent));
                }
            }
            Some(refusal) => {
                assert_eq!(refusal, Refusal::Host);
                assert!(self.failed);
                assert_eq!(outcome.taken, 0);
                self.unfinished = unfinished;
                self.give_back(message);
            }
        }
    }

    /// Puts frames of a refused message back into the pool: those that are granted and that the
    /// unfinished commit does not name.
    fn give_back(&mut self, message: &[SealRecord]) {
        for record in message {
            let frame = record.new_frame;
            let named = self
                .unfinished
                .as_ref()
                .is_some_and(|(records, _)| records.iter().any(|record| record.new_frame == frame));
            if self.engine.frame_state(frame) == Some(FrameState::Granted)
                && !named
                && !self.pool.contains(&frame)
            {
                self.pool.push(frame);
            }
        }
    }

    /// Spoils a commit; returns whether that was possible.
    fn damage(&mut self, damage: Damage, records: &mut [SealRecord]) -> bool {
        let first = records[0];
        let last = records.len() - 1;
        let other = self
            .all_pages()
            .into_iter()
            .find(|&(app, domain, _)| app == first.app && domain != first.domain);
        match damage {
            Damage::StaleFrame => records[0].old_frame = ZERO_FRAME,
            Damage::ForeignPage => match other {
                Some((_, _, page)) => records[0].page = page,
                None => return false,
            },
            Damage::PageOutside => records[last].page = u32::MAX,
            Damage::FrameTwice => {
                if last == 0 {
                    return false;
                }
                records[last].new_frame = records[0].new_frame;
            }
            Damage::FrameNotGranted => records[last].new_frame = u32::MAX,
            Damage::SealedFrame => records[last].new_frame = ZERO_FRAME,
            Damage::NoTag => records.iter_mut().for_each(|record| record.tag = 0),
            Damage::TwoTags => {
                if last == 0 {
                    return false;
                }
                records[last].tag += 1;
            }
            Damage::UnknownDomain => records[last].domain = NONE,
            Damage::UnknownApp => records[last].app = 63,
            Damage::UnknownFlag => records[last].flags |= 2,
        }
        true
    }

    fn discard(&mut self, count: usize, wrong: bool) {
        let count = count.min(self.pool.len());
        let mut frames = self.pool[..count].to_vec();
        if wrong {
            let staged = self
                .unfinished
                .as_ref()
                .map(|(records, _)| records[0].new_frame);
            frames.push(staged.unwrap_or(ZERO_FRAME));
        }
        match self.engine.discard(&frames, RUNS, &mut self.memory) {
            Ok(granted) => {
                assert!(!wrong);
                self.pool.drain(..count);
                self.take_grant(&granted);
            }
            Err(Refusal::Host) => assert!(self.failed),
            Err(refusal) => assert!(wrong, "{refusal}"),
        }
    }

    fn incident(&mut self, count: usize, wrong: bool) {
        let all = self.all_pages();
        let count = count.min(self.pool.len()).min(all.len());
        let Some(&(app, ..)) = all.first() else {
            return;
        };
        let drafts: Vec<DroppedDraft> = all
            .iter()
            .filter(|page| page.0 == app)
            .zip(&self.pool[..count])
            .map(|(&(app, domain, page), &frame)| DroppedDraft {
                domain,
                page,
                frame,
                committed: self.pages.get(&(app, page)).map_or(NONE, |&(f, _)| f),
            })
            .collect();
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
        let call = Call {
            at: Duration::ZERO,
            max_runs: RUNS,
        };
        for draft in &drafts {
            let content = self.memory.content[draft.frame as usize];
            self.evidence.insert(draft.frame, content);
        }
        match self.engine.report(call, &report, &drafts, &mut self.memory) {
            Ok(granted) => {
                assert!(!wrong);
                self.next_incident += 2;
                self.pool.drain(..drafts.len());
                self.take_grant(&granted);
                let facts = snapshot::incident(&self.engine, report.incident).unwrap();
                let request = facts.request().unwrap().clone();
                assert_eq!(request.drafts.len(), drafts.len());
                assert_eq!(request.restored, Restored::Sealed);
                let before = self.lost.len();
                for draft in &drafts {
                    let page = (app, draft.page);
                    if let Some(&(frame, _)) = self.pages.get(&page)
                        && !self.lost.contains(&page)
                    {
                        self.expect_check(page, frame);
                    }
                }
                self.expect_events(self.lost.len() - before);
            }
            Err(Refusal::Host) => assert!(self.failed),
            Err(refusal) => assert!(wrong, "{refusal}"),
        }
    }
}

/// What `records` make of the pages when they are sealed.
fn apply(
    pages: &mut BTreeMap<(u32, u32), (u32, u64)>,
    records: &[SealRecord],
    memory: &MockMemory,
) {
    for record in records {
        let content = memory.content[record.new_frame as usize];
        pages.insert((record.app, record.page), (record.new_frame, content));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_promises_hold_whatever_the_driver_does(steps in steps()) {
        let mut world = World::new();
        // Most random sequences would otherwise start with refusals only.
        world.open_domain(0, 0, false);
        world.add_extent(0, 0, 8);
        world.open_domain(0, 1, true);
        world.add_extent(0, 1, 8);
        world.step(&Step::Grant(20));
        for step in &steps {
            world.step(step);
            world.check();
        }
        world.everybody_else_can_go_on();
        world.check();
    }
}
