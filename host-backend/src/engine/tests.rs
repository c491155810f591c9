//! What the engine refuses, one by one, and what its calls give.

mod deletion;

use std::convert::Infallible;
use std::time::Duration;

use bytemuck::{Zeroable, bytes_of, pod_read_unaligned};
use proptest::prelude::*;
use vmsrs_protocol::control::{
    AddExtent, ControlHeader, DOMAIN_MIRROR, Extent, MESSAGE_ADD_EXTENT, MESSAGE_EVIDENCE,
    MESSAGE_INCIDENT, MESSAGE_LIST_EXTENTS, MESSAGE_LIST_PAGES, MESSAGE_OPEN_APP,
    MESSAGE_OPEN_DOMAIN, MESSAGE_REPORTS, MESSAGE_SEAL, OpenApp, OpenDomain, ReplyHeader,
    STATUS_HOST_ERROR, STATUS_MALFORMED, STATUS_NO_SPACE, STATUS_NOT_FOUND, STATUS_NOT_OWNER,
    STATUS_OK, STATUS_STALE, STATUS_UNKNOWN, SealReply, SealRequest,
};
use vmsrs_protocol::event::EVENT_DAMAGE;
use vmsrs_protocol::heap::{BlockHeader, State};
use vmsrs_protocol::incident::{
    DroppedDraft, Evidence, IncidentReport, KIND_CHECKSUM, KIND_MAX, KIND_MEMORY, KIND_POISON,
    REG_RIP, REPORT_ADDRESS, STACK_MAX,
};
use vmsrs_protocol::seal::{SEAL_LAST, SealRecord};
use vmsrs_protocol::{
    APP_BASE, DAMAGED_FRAME, EXTENT_MAX_PAGES, IN_POOL, KEY_MAX, MAX_APPS, MAX_DOMAINS, NAME_MAX,
    NONE, ZERO_FRAME,
};

use super::memory::{Memory, NotCopied, PoolCopy, Unreadable};
use super::mock::MockMemory;
use super::scrub::{Position, Scope};
use super::{CODE_MAX, SealedWrite};
use super::{Engine, EngineConfig, FrameState, Page};
use super::{Refusal, handle_message};
use crate::control::{
    BlockState, ChangeFacts, IncidentFacts, IncidentOutcome, Place, RequestFacts, Restored,
    snapshot,
};

const AT: Duration = Duration::from_millis(1234);

const CONFIG: EngineConfig = EngineConfig {
    vault_frames: 200,
    pool_frames: 40,
    batch_records: 64,
    incidents: 4,
};

/// An engine with one app of two domains of four pages each.
struct Bench {
    engine: Engine,
    memory: MockMemory,
}

impl Bench {
    fn new() -> Self {
        Self::with(CONFIG)
    }

    fn with(config: EngineConfig) -> Self {
        let mut bench = Self {
            engine: Engine::new(config).unwrap(),
            memory: MockMemory::new(&config),
        };
        bench.engine.open_app(&app_name("ledger")).unwrap();
        for (domain, key) in [(0, "alice"), (1, "bob")] {
            bench.engine.open_domain(&domain_key(0, key)).unwrap();
            bench.engine.add_extent(&extent(domain, 0, 4)).unwrap();
        }
        bench
    }

    /// Sends a message of a batch; returns the vault frames.
    fn send(&mut self, records: &[SealRecord], flags: u32) -> Result<Vec<u32>, Refusal> {
        let memory = &mut self.memory;
        let outcome = self.engine.seal(AT, records, flags, memory).unwrap();
        self.engine.check_invariants();
        assert!(outcome.refusal.is_none() || outcome.frames.is_empty());
        match outcome.refusal {
            None => Ok(outcome.frames),
            Some(refusal) => Err(refusal),
        }
    }

    /// Sends a batch of one message.
    fn seal(&mut self, records: &[SealRecord]) -> Result<Vec<u32>, Refusal> {
        self.send(records, SEAL_LAST)
    }

    fn report(&mut self, report: &IncidentReport, drafts: &[DroppedDraft]) -> Result<(), Refusal> {
        let result = self.engine.report(AT, report, drafts, &self.memory);
        self.engine.check_invariants();
        result
    }

    fn cleanse(&mut self) {
        let Self { engine, memory, .. } = self;
        engine
            .cleanse(u32::MAX, |frame| memory.wipe(frame))
            .unwrap();
    }

    fn request(&self, number: u64) -> RequestFacts {
        let detail = snapshot::incident(&self.engine, number).unwrap();
        detail.request().unwrap().clone()
    }

    fn state(&self, frame: u32) -> FrameState {
        self.engine.frame_state(frame).unwrap()
    }

    fn frame_of(&self, page: u32) -> u32 {
        self.engine.store.apps[0].frame(page)
    }

    /// Frames of the vault in each state, and what every page has.
    fn facts(&self) -> (Vec<u32>, Vec<u32>) {
        let counts = [FrameState::Staged, FrameState::Sealed, FrameState::Mirror];
        let counts = counts.map(|state| self.engine.store.frames.count(state));
        let pages = (0..12).map(|page| self.frame_of(page)).collect();
        (counts.to_vec(), pages)
    }
}

fn app_name(name: &str) -> OpenApp {
    let mut message = OpenApp::zeroed();
    message.name[..name.len()].copy_from_slice(name.as_bytes());
    message
}

fn domain_key(app: u32, key: &str) -> OpenDomain {
    let mut message = OpenDomain::zeroed();
    message.app = app;
    message.key_length = key.len() as u32;
    message.key[..key.len()].copy_from_slice(key.as_bytes());
    message.reuse = NONE;
    message
}

fn extent(domain: u32, index: u32, pages: u32) -> AddExtent {
    AddExtent {
        app: 0,
        domain,
        index,
        pages,
    }
}

/// A committed page of domain 0.
fn record(page: u32, vault_frame: u32, pool_frame: u32) -> SealRecord {
    SealRecord {
        app: 0,
        domain: 0,
        page,
        pool_frame,
        vault_frame,
        reserved: 0,
    }
}

fn report(incident: u64) -> IncidentReport {
    IncidentReport {
        incident,
        tag: 7,
        kind: KIND_MEMORY,
        address_domain: NONE,
        ..IncidentReport::default()
    }
}

fn draft(page: u32, pool_frame: u32, committed: u32) -> DroppedDraft {
    DroppedDraft {
        domain: 0,
        page,
        pool_frame,
        committed,
    }
}

#[test]
fn an_app_needs_a_name_padded_with_zeros() {
    let mut bench = Bench::new();
    let mut holed = app_name("a");
    holed.name[5] = b'x';
    for message in [app_name(""), holed] {
        let refusal = bench.engine.open_app(&message).unwrap_err();
        assert_eq!(refusal.status(), STATUS_MALFORMED);
    }
    let longest = "x".repeat(NAME_MAX);
    assert_eq!(bench.engine.open_app(&app_name(&longest)).unwrap().app, 1);
    let known = bench.engine.open_app(&app_name("ledger")).unwrap();
    assert_eq!((known.app, known.domains), (0, 2));
}

#[test]
fn there_are_as_many_apps_as_there_are_address_ranges() {
    let mut bench = Bench::new();
    for number in 1..MAX_APPS {
        let name = format!("app-{number}");
        assert_eq!(bench.engine.open_app(&app_name(&name)).unwrap().app, number);
    }
    let refusal = bench.engine.open_app(&app_name("one more")).unwrap_err();
    assert_eq!(refusal.status(), STATUS_NO_SPACE);
}

#[test]
fn a_domain_needs_an_app_and_a_key_padded_with_zeros() {
    let mut bench = Bench::new();
    let mut too_long = domain_key(0, "k");
    too_long.key_length = KEY_MAX as u32 + 1;
    let mut holed = domain_key(0, "k");
    holed.key[9] = 1;
    for (message, status) in [
        (domain_key(0, ""), STATUS_MALFORMED),
        (too_long, STATUS_MALFORMED),
        (holed, STATUS_MALFORMED),
        (domain_key(1, "k"), STATUS_NOT_FOUND),
    ] {
        let refusal = bench.engine.open_domain(&message).unwrap_err();
        assert_eq!(refusal.status(), status);
    }
    let known = bench.engine.open_domain(&domain_key(0, "bob")).unwrap();
    assert_eq!((known.domain, known.extents, known.pages), (1, 1, 0));
}

#[test]
fn domains_are_limited_by_the_vault() {
    let mut bench = Bench::new();
    let (_, room) = bench.engine.store.pages();
    let mut opened = 2;
    let refusal = loop {
        let key = format!("user-{opened}");
        match bench.engine.open_domain(&domain_key(0, &key)) {
            Ok(_) => opened += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal.status(), STATUS_NO_SPACE);
    assert_eq!(opened, room.div_ceil(4));
}

#[test]
fn an_open_domain_has_its_first_extent_and_tells_its_pages() {
    let mut bench = Bench::new();
    let carol = |pages| OpenDomain {
        pages,
        ..domain_key(0, "carol")
    };
    let refusal = bench.engine.open_domain(&carol(EXTENT_MAX_PAGES + 1));
    assert_eq!(refusal.unwrap_err().status(), STATUS_MALFORMED);
    let refusal = bench.engine.open_domain(&carol(EXTENT_MAX_PAGES));
    assert_eq!(refusal.unwrap_err().status(), STATUS_NO_SPACE);
    assert_eq!(bench.engine.store.domains(), 2, "a refusal makes nothing");

    let reply = bench.engine.open_domain(&carol(5)).unwrap();
    let first = Extent { page: 16, pages: 8 };
    assert_eq!((reply.extents, reply.pages), (1, 0));
    assert_eq!((reply.first, reply.frames), (first, [NONE; 4]));
    bench.engine.check_invariants();
    let named = |page, pool| SealRecord {
        domain: reply.domain,
        ..record(page, NONE, pool)
    };
    let frames = bench.seal(&[named(17, 0), named(19, 1), named(20, 2)]);
    let frames = frames.unwrap();
    bench.engine.store.damage(frames[1]);
    let reply = bench.engine.open_domain(&carol(100)).unwrap();
    assert_eq!((reply.extents, reply.pages), (1, 3));
    assert_eq!(reply.first, first, "it has one already");
    assert_eq!(reply.frames, [NONE, frames[0], NONE, DAMAGED_FRAME]);
}

#[test]
fn a_first_extent_takes_room_for_its_mirror() {
    let mut bench = Bench::new();
    let (used, room) = bench.engine.store.pages();
    let mirrored = |pages| OpenDomain {
        flags: DOMAIN_MIRROR,
        pages,
        ..domain_key(0, "carol")
    };
    let half = (room - used) / 2;
    let refusal = bench.engine.open_domain(&mirrored(half + 4)).unwrap_err();
    assert_eq!(refusal.status(), STATUS_NO_SPACE);
    let pages = half - half % 4;
    bench.engine.open_domain(&mirrored(pages)).unwrap();
    assert_eq!(
        bench.engine.store.pages(),
        (used + pages, room - pages),
        "as many pages as copies"
    );
    bench.engine.check_invariants();
}

#[test]
fn an_extent_is_rounded_up_and_found_again() {
    let mut bench = Bench::new();
    let first = bench.engine.add_extent(&extent(0, 1, 5)).unwrap();
    // Behind a guard unit: the last extent is another domain's.
    assert_eq!((first.page, first.pages), (16, 8));
    let again = bench.engine.add_extent(&extent(0, 1, 100)).unwrap();
    assert_eq!(again, first);
    for (message, status) in [
        (extent(0, 3, 4), STATUS_NOT_FOUND),
        (extent(2, 0, 4), STATUS_NOT_FOUND),
        (extent(0, 2, 0), STATUS_MALFORMED),
        (extent(0, 2, EXTENT_MAX_PAGES + 1), STATUS_MALFORMED),
        (extent(0, 2, u32::MAX), STATUS_MALFORMED),
        (extent(0, 2, EXTENT_MAX_PAGES), STATUS_NO_SPACE),
    ] {
        let refusal = bench.engine.add_extent(&message).unwrap_err();
        assert_eq!(refusal.status(), status, "{message:?}");
    }
}

#[test]
fn a_full_vault_still_takes_a_full_pool() {
    let mut bench = Bench::new();
    let (used, room) = bench.engine.store.pages();
    let mut index = 1;
    let mut page = used;
    while bench.engine.add_extent(&extent(0, index, 4)).is_ok() {
        index += 1;
        page += 4;
    }
    assert!(room - page < 4);
    let bobs = 8..12;
    let pages: Vec<(u32, u32)> = (0..4)
        .chain(bobs.clone())
        .chain(16..page + 8)
        .map(|page| (u32::from(bobs.contains(&page)), page))
        .collect();
    // Every page over and over, a whole pool at a time, without a cleanser.
    for round in 0..5 {
        for pages in pages.chunks(40) {
            let records: Vec<SealRecord> = (0..)
                .zip(pages)
                .map(|(pool_frame, &(domain, page))| SealRecord {
                    domain,
                    ..record(page, bench.frame_of(page), pool_frame)
                })
                .collect();
            assert!(bench.seal(&records).is_ok(), "round {round}");
        }
    }
    let status = snapshot::engine_status(&bench.engine);
    assert_eq!(status.sealed_frames, page + 1);
}

#[test]
fn sealing_copies_the_page_and_retires_its_former_frame() {
    let mut bench = Bench::new();
    bench.memory.guest_write(5, 77);
    let first = bench.seal(&[record(2, NONE, 5)]).unwrap()[0];
    assert_eq!(
        (bench.frame_of(2), bench.state(first)),
        (first, FrameState::Sealed)
    );
    bench.memory.guest_write(5, 78);
    assert_eq!(bench.memory.content(first), 77);
    let second = bench.seal(&[record(2, first, 5)]).unwrap()[0];
    assert_eq!(bench.frame_of(2), second);
    assert_eq!(bench.memory.content(second), 78);
    assert_eq!(bench.state(first), FrameState::Retired);
}

#[test]
fn a_pool_frame_that_changes_is_read_once() {
    let mut bench = Bench::new();
    bench.memory.is_restless = true;
    for frame in 0..3 {
        bench.memory.guest_write(frame, 100 + u64::from(frame));
    }
    let first = bench
        .send(&[record(0, NONE, 0), record(1, NONE, 1)], 0)
        .unwrap();
    let second = bench.seal(&[record(2, NONE, 2)]).unwrap();
    let Bench { engine, memory, .. } = &mut bench;
    assert_eq!(memory.copies[..4], [1, 1, 1, 0]);
    for (frame, content) in first.into_iter().chain(second).zip(100..) {
        assert_eq!(memory.content(frame), content);
    }
    // The checksum is that of the copy.
    let scope = Scope::default();
    let turn = engine.scrub(AT, scope, Position::default(), 100, memory);
    assert_eq!((turn.found.checked, turn.found.damaged), (3, 0));
}

#[test]
fn a_batch_takes_effect_with_its_last_message() {
    let mut bench = Bench::new();
    bench.memory.guest_write(0, 7);
    let first = bench.send(&[record(0, NONE, 0)], 0).unwrap()[0];
    assert_eq!(bench.frame_of(0), NONE);
    assert_eq!(bench.state(first), FrameState::Staged);
    // Others may come between.
    bench.engine.open_domain(&domain_key(0, "carol")).unwrap();
    bench.report(&report(1), &[draft(1, 7, NONE)]).unwrap();
    let (facts, bytes) = evidence(1);
    bench.engine.evidence(&facts, &bytes).unwrap();
    let second = bench.seal(&[record(1, NONE, 1)]).unwrap()[0];
    assert_eq!((bench.frame_of(0), bench.frame_of(1)), (first, second));
    // The end of a batch may be a message of its own.
    let third = bench.send(&[record(2, NONE, 2)], 0).unwrap()[0];
    assert_eq!(bench.seal(&[]), Ok(Vec::new()));
    assert_eq!(bench.frame_of(2), third);
    let status = snapshot::engine_status(&bench.engine);
    assert_eq!((status.batches, status.sealed_pages), (2, 3));
}

#[test]
fn a_refused_message_drops_the_whole_batch() {
    type Spoil = fn(&mut SealRecord);
    let cases: [(u32, Spoil); 12] = [
        (STATUS_STALE, |record| record.vault_frame = 5),
        (STATUS_STALE, |record| record.vault_frame = ZERO_FRAME),
        (STATUS_STALE, |record| record.vault_frame = DAMAGED_FRAME),
        (STATUS_NOT_OWNER, |record| record.page = 4),
        (STATUS_NOT_OWNER, |record| record.page = 8),
        (STATUS_NOT_OWNER, |record| record.page = u32::MAX),
        (STATUS_MALFORMED, |record| record.pool_frame = 40),
        (STATUS_MALFORMED, |record| record.pool_frame = NONE),
        (STATUS_MALFORMED, |record| record.pool_frame = 0),
        (STATUS_MALFORMED, |record| record.page = 0),
        (STATUS_NOT_FOUND, |record| record.domain = 2),
        (STATUS_NOT_FOUND, |record| record.app = 1),
    ];
    for (status, spoil) in cases {
        for is_split in [false, true] {
            let mut bench = Bench::new();
            let sealed = bench.seal(&[record(3, NONE, 3)]).unwrap()[0];
            let before = bench.facts();
            let mut bad = record(2, NONE, 2);
            spoil(&mut bad);
            let good = [record(0, NONE, 0), record(3, sealed, 1)];
            let refused = match is_split {
                true => {
                    bench.send(&good, 0).unwrap();
                    bench.seal(&[bad, record(1, NONE, 4)])
                }
                false => bench.seal(&[good[0], good[1], bad, record(1, NONE, 4)]),
            };
            assert_eq!(refused.map_err(Refusal::status), Err(status), "{bad:?}");
            assert_eq!(bench.facts(), before);
            // Nothing of it is left that would stand in the way of the next batch.
            bench.seal(&[good[0], good[1], record(2, NONE, 2)]).unwrap();
        }
    }
}

#[test]
fn wrong_seal_messages_are_refused() {
    let mut bench = Bench::new();
    let records = vec![record(0, NONE, 1); 65];
    let Bench { engine, memory, .. } = &mut bench;
    let refusal = engine.seal(AT, &records, SEAL_LAST, memory).unwrap_err();
    assert_eq!(refusal.status(), STATUS_MALFORMED);
    let flags = bench.send(&[record(0, NONE, 1)], 2).unwrap_err();
    assert_eq!(flags.status(), STATUS_MALFORMED);
    // More pages than the pool has frames.
    bench.engine.add_extent(&extent(0, 1, 44)).unwrap();
    let mut records: Vec<SealRecord> = (16..57).map(|page| record(page, NONE, page - 16)).collect();
    let longer = bench.seal(&records).unwrap_err();
    assert_eq!(longer.status(), STATUS_MALFORMED);
    records.pop();
    bench.seal(&records).unwrap();
}

#[test]
fn a_batch_that_the_host_cannot_write_has_no_effect() {
    let mut bench = Bench::new();
    let before = bench.facts();
    bench.send(&[record(0, NONE, 0)], 0).unwrap();
    let records = [record(1, NONE, 2), record(2, NONE, 4)];
    bench.memory.fails_after = Some(1);
    let refusal = bench.seal(&records).unwrap_err();
    assert_eq!(refusal.status(), STATUS_HOST_ERROR);
    assert_eq!(bench.facts(), before);
    bench.seal(&records).unwrap();
}

#[test]
fn a_reset_drops_an_unfinished_batch_and_keeps_sealed_pages() {
    let mut bench = Bench::new();
    let sealed = bench.seal(&[record(3, NONE, 3)]).unwrap()[0];
    bench.send(&[record(0, NONE, 0)], 0).unwrap();
    bench.engine.reset();
    bench.engine.check_invariants();
    assert_eq!(bench.frame_of(3), sealed);
    // The rest of the batch must not become a batch with it.
    bench.seal(&[record(1, NONE, 1)]).unwrap();
    assert_eq!(bench.frame_of(0), NONE);
    assert_eq!(bench.engine.open_app(&app_name("ledger")).unwrap().app, 0);
}

#[test]
fn an_unreadable_pool_frame_damages_its_page_alone() {
    let mut bench = Bench::new();
    for frame in 0..3 {
        bench.memory.guest_write(frame, 9);
    }
    // Something that the page must not show.
    let other = bench.seal(&[record(3, NONE, 0)]).unwrap()[0];
    bench.seal(&[record(3, other, 0)]).unwrap();
    bench.memory.broken_pool[1] = true;
    let records = [record(0, NONE, 0), record(1, NONE, 1), record(2, NONE, 2)];
    let frames = bench.seal(&records).unwrap();
    assert_eq!(frames[1], DAMAGED_FRAME);
    assert_eq!(
        (bench.frame_of(0), bench.frame_of(2)),
        (frames[0], frames[2])
    );
    assert_eq!(bench.memory.content(bench.frame_of(1)), 0);
    let (pages, _) = bench.engine.list_pages(0, 0, 0, 10).unwrap();
    assert_eq!(pages[1].frame, DAMAGED_FRAME);
    let [event] = bench.engine.take_events()[..] else {
        panic!("not one event");
    };
    assert_eq!((event.kind, event.address), (EVENT_DAMAGE, APP_BASE + 4096));
    // Another version makes the page whole. The driver knows the lost one by no frame.
    bench.memory.broken_pool[1] = false;
    let frame = bench.seal(&[record(1, DAMAGED_FRAME, 1)]).unwrap()[0];
    assert_eq!(bench.memory.content(frame), 9);
    assert_eq!(snapshot::engine_status(&bench.engine).damaged_pages, 0);
}

#[test]
fn a_mirror_is_a_copy_of_the_vaults_frame() {
    let mut bench = Bench::new();
    let mirrored = OpenDomain {
        flags: DOMAIN_MIRROR,
        ..domain_key(0, "alice")
    };
    bench.engine.open_domain(&mirrored).unwrap();
    bench.memory.is_restless = true;
    bench.memory.guest_write(0, 7);
    let frame = bench.seal(&[record(0, NONE, 0)]).unwrap()[0];
    let copy = bench.engine.store.frames.mirror(frame).unwrap();
    assert_eq!(
        (bench.memory.content(frame), bench.memory.content(copy)),
        (7, 7)
    );
    bench.memory.vault[frame as usize][5] ^= 1;
    let Bench { engine, memory, .. } = &mut bench;
    let turn = engine.scrub(AT, Scope::default(), Position::default(), 10, memory);
    assert_eq!(turn.found.repaired, 1);
    assert_eq!(memory.content(frame), 7);
}

#[test]
fn guest_down_is_an_incident_only_with_open_domains() {
    let mut bench = Bench::new();
    let at = Duration::from_millis(5);
    bench.memory.guest_write(3, 7);
    let sealed = bench.seal(&[record(3, NONE, 3)]).unwrap()[0];
    bench.send(&[record(0, NONE, 0)], 0).unwrap();
    let engine = &mut bench.engine;
    engine.reset();
    engine.guest_down(at, "the guest reset itself");
    engine.check_invariants();
    let [incident] = &snapshot::incidents(engine)[..] else {
        panic!("{:?}", snapshot::incidents(engine));
    };
    assert_eq!((incident.number, incident.at_ms), (2, 5));
    assert_eq!(incident.kind, "guest-down");
    let facts = snapshot::incident(engine, 2).unwrap().facts;
    let IncidentFacts::GuestDown(detail) = facts else {
        panic!("{facts:?}");
    };
    assert_eq!(detail.reason, "the guest reset itself");
    assert_eq!(
        (detail.pool_frames, detail.domains, detail.staged_pages),
        (40, 2, 1)
    );
    assert_eq!(bench.frame_of(3), sealed);
    assert_eq!(bench.memory.content(sealed), 7);

    let engine = &mut bench.engine;
    engine.reset();
    engine.guest_down(at, "the guest reset itself");
    assert_eq!(snapshot::incidents(engine).len(), 1);
    let status = snapshot::engine_status(engine);
    assert_eq!((status.resets, status.staged_frames), (2, 0));
    assert_eq!(status.incidents[0].what, "guest-down");
}

#[test]
fn a_former_boots_loss_is_not_blamed_on_the_next() {
    let mut bench = Bench::new();
    bench.engine.reset();
    bench.engine.driver_started();
    bench.engine.guest_down(Duration::ZERO, "a test");
    assert_eq!(snapshot::incidents(&bench.engine), []);
}

#[test]
fn the_verdict_says_what_a_page_goes_back_to() {
    let mut bench = Bench::new();
    bench.memory.guest_write(0, 1);
    let superseded = bench.seal(&[record(2, NONE, 0)]).unwrap()[0];
    let foreign = bench.seal(&[record(3, NONE, 0)]).unwrap()[0];
    let sealed = bench.seal(&[record(2, superseded, 0)]).unwrap()[0];
    bench.memory.guest_write(4, 1);
    bench.memory.guest_write(5, 1);
    let cases = [
        (1, sealed, Restored::Sealed, Some(0)),
        // Committed and still in the driver's batch.
        (3, IN_POOL | 5, Restored::Committed, Some(0)),
        // A frame that is not the page's is compared with nothing.
        (5, superseded, Restored::Unknown, None),
        (7, foreign, Restored::Unknown, None),
        (9, ZERO_FRAME, Restored::Unknown, None),
        (11, NONE, Restored::Unknown, None),
        (13, DAMAGED_FRAME, Restored::Unknown, None),
    ];
    for (number, committed, restored, changed) in cases {
        bench
            .report(&report(number), &[draft(2, 4, committed)])
            .unwrap();
        let request = bench.request(number);
        assert_eq!(request.restored, restored, "committed {committed}");
        assert_eq!(
            request.drafts[0].changed_bytes, changed,
            "committed {committed}"
        );
        assert_eq!(request.drafts[0].changes, []);
    }
}

#[test]
fn the_first_drafts_and_the_accessed_one_are_compared() {
    let mut bench = Bench::new();
    bench.engine.add_extent(&extent(0, 1, 8)).unwrap();
    // Of both extents; the other domain's and guards are between them.
    let pages = [0, 1, 2, 3, 16, 17, 18, 19];
    let drafts: Vec<_> = pages
        .into_iter()
        .zip(0..)
        .map(|(page, frame)| draft(page, frame, NONE))
        .collect();
    for frame in 0..8 {
        bench.memory.guest_write(frame, 1);
    }
    let failed = IncidentReport {
        flags: REPORT_ADDRESS,
        address: APP_BASE + 18 * 4096 + 77,
        ..report(1)
    };
    bench.report(&failed, &drafts).unwrap();
    let request = bench.request(1);
    let compared = request
        .drafts
        .iter()
        .filter(|draft| draft.changed_bytes.is_some());
    let compared: Vec<_> = compared.map(|draft| draft.page).collect();
    assert_eq!(compared, [0, 1, 2, 3, 18]);
    assert_eq!(
        (request.drafts.len(), request.restored),
        (8, Restored::Sealed)
    );
}

#[test]
fn a_wrong_sealed_version_is_found_soon_after_a_report() {
    let mut bench = Bench::new();
    let frames = bench
        .seal(&[record(1, NONE, 0), record(2, NONE, 1)])
        .unwrap();
    bench.memory.vault[frames[1] as usize][8] ^= 4;
    let drafts = [draft(1, 2, frames[0]), draft(2, 3, frames[1])];
    bench.report(&report(1), &drafts).unwrap();
    let suspect = bench.engine.take_suspect().unwrap();
    assert_eq!((suspect.app, suspect.domain), (Some(0), Some(0)));
    assert!(!bench.engine.has_suspects());
    let Bench { engine, memory, .. } = &mut bench;
    let turn = engine.scrub(AT, suspect, suspect.start(), 10, memory);
    assert_eq!((turn.found.damaged, turn.next), (1, None));
    let (pages, _) = engine.list_pages(0, 0, 0, 10).unwrap();
    assert_eq!((pages[0].frame, pages[1].frame), (frames[0], DAMAGED_FRAME));
    // Further failures in the same minute cost no further check.
    bench.report(&report(3), &drafts[..1]).unwrap();
    assert!(!bench.engine.has_suspects());
}

#[test]
fn old_incidents_make_room_for_new_ones() {
    let mut bench = Bench::new();
    for number in 0..10 {
        bench
            .report(&report(number * 2 + 1), &[draft(0, 0, NONE)])
            .unwrap();
    }
    let incidents = bench.engine.incidents();
    let kept: Vec<u64> = incidents.iter().map(|incident| incident.number).collect();
    assert_eq!(kept, [13, 15, 17, 19]);
    assert!(kept.iter().all(|&number| incidents.get(number).is_some()));
    assert!(incidents.get(11).is_none());
    assert_eq!(
        snapshot::engine_status(&bench.engine).incidents[0].count,
        10
    );
}

#[test]
fn retired_frames_are_free_when_they_are_wiped() {
    let mut bench = Bench::new();
    bench.memory.guest_write(0, 5);
    let frame = bench.seal(&[record(0, NONE, 0)]).unwrap()[0];
    bench.seal(&[record(0, frame, 0)]).unwrap();
    assert!(bench.engine.has_retired());
    bench.cleanse();
    assert!(!bench.engine.has_retired());
    assert_eq!(bench.state(frame), FrameState::Free);
    assert_eq!(bench.memory.content(frame), 0);
    // The frame that became free last is used first.
    let next = bench.seal(&[record(1, NONE, 1)]).unwrap()[0];
    assert_eq!(next, frame);
}

#[test]
fn retired_frames_are_used_before_they_are_wiped() {
    let mut bench = Bench::new();
    let frame = bench.seal(&[record(0, NONE, 0)]).unwrap()[0];
    let next = bench.seal(&[record(0, frame, 0)]).unwrap()[0];
    assert_eq!(bench.seal(&[record(0, next, 0)]).unwrap(), [frame]);
    assert_eq!(bench.seal(&[record(0, frame, 0)]).unwrap(), [next]);
    assert_eq!(bench.engine.take_unused(), 0, "nothing waited that long");
    assert_eq!(bench.state(frame), FrameState::Retired);
    assert_eq!(bench.engine.take_unused(), 1);
}

#[test]
fn vault_frames_that_stay_broken_are_set_aside_and_nothing_is_lost() {
    let mut bench = Bench::new();
    for frame in 0..3 {
        bench.memory.guest_write(frame, 9);
    }
    let first = bench.seal(&[record(0, NONE, 0)]).unwrap()[0];
    let broken = [first + 1, first + 2, first + 4];
    for frame in broken {
        bench.memory.unwritable[frame as usize] = true;
    }
    let records = [record(1, NONE, 1), record(2, NONE, 2)];
    let frames = bench.seal(&records).unwrap();
    for frame in &frames {
        assert!(!broken.contains(frame));
        assert_eq!(bench.memory.content(*frame), 9);
    }
    assert!(bench.engine.has_unwiped());
    for frame in &broken[..2] {
        assert_eq!(bench.state(*frame), FrameState::Retired);
    }
    assert!(bench.engine.take_events().is_empty());
    bench.engine.check_invariants();
    // With other memory they are used again.
    bench.memory.unwritable.fill(false);
    bench.engine.retry_unwiped();
    bench.cleanse();
    assert_eq!(bench.state(broken[0]), FrameState::Free);
}

#[test]
fn unwipeable_frame_stays_retired_and_delays_no_other() {
    let mut bench = Bench::new();
    let records: Vec<SealRecord> = (0..4).map(|page| record(page, NONE, page)).collect();
    let frames = bench.seal(&records).unwrap();
    let again: Vec<SealRecord> = (0..4)
        .map(|page| record(page, frames[page as usize], page))
        .collect();
    bench.seal(&again).unwrap();
    let engine = &mut bench.engine;
    let refuse = |frame| match frame == frames[2] {
        true => Err(frame),
        false => Ok(()),
    };
    assert_eq!(engine.cleanse(10, refuse), Err(frames[2]));
    assert!(engine.has_unwiped() && !engine.has_retired());
    engine.check_invariants();
    for &frame in &frames {
        let expected = match frame == frames[2] {
            true => FrameState::Retired,
            false => FrameState::Free,
        };
        assert_eq!(engine.frame_state(frame), Some(expected), "frame {frame}");
    }
    engine.retry_unwiped();
    assert_eq!(engine.cleanse(10, |_| Ok::<_, Infallible>(())), Ok(()));
    assert!(!engine.has_unwiped());
    assert_eq!(engine.frame_state(frames[2]), Some(FrameState::Free));
}

/// A vault that takes everything and shows nothing.
struct Nothing;

impl Memory for Nothing {
    fn seal(&mut self, _: PoolCopy) -> Result<u64, NotCopied> {
        Ok(0)
    }

    fn read_pool(&self, _: u32, _: &mut Page) -> Result<(), Unreadable> {
        Ok(())
    }

    fn read_vault(&self, _: u32, _: &mut Page) -> Result<(), Unreadable> {
        Ok(())
    }

    fn checksum(&self, _: u32) -> Result<u64, Unreadable> {
        Ok(0)
    }

    fn copy(&mut self, _: u32, _: u32) -> Result<(), Unreadable> {
        Ok(())
    }

    fn replace(&mut self, _: u32, _: Option<u32>) -> Result<(), Unreadable> {
        Ok(())
    }
}

#[test]
fn as_many_domains_as_an_app_can_have_cost_64_bytes_each_and_per_page() {
    const DOMAINS: u32 = MAX_DOMAINS;
    let mut engine = Engine::new(EngineConfig {
        vault_frames: (DOMAINS + 1) * 4 + 257,
        pool_frames: 256,
        batch_records: 256,
        incidents: 4,
    })
    .unwrap();
    engine.open_app(&app_name("ledger")).unwrap();
    for domain in 0..DOMAINS {
        let message = OpenDomain {
            pages: 1,
            ..domain_key(0, &format!("user-{domain:07}"))
        };
        let reply = engine.open_domain(&message).unwrap();
        assert_eq!((reply.domain, reply.extents), (domain, 1));
        let page = reply.first.page;
        let record = SealRecord {
            domain,
            ..record(page, NONE, domain % 256)
        };
        let outcome = engine.seal(AT, &[record], SEAL_LAST, &mut Nothing).unwrap();
        assert_eq!(outcome.refusal, None);
    }
    let status = snapshot::engine_status(&engine);
    assert_eq!(
        (status.domains, status.sealed_frames),
        (DOMAINS, DOMAINS + 1)
    );
    let refusal = engine.open_domain(&domain_key(0, "one more")).unwrap_err();
    assert_eq!(refusal.status(), STATUS_NO_SPACE);
    let each = status.metadata_bytes as f64 / f64::from(DOMAINS);
    assert!(each <= 128.0, "{each} bytes for a domain with its page");
}

#[test]
fn seal_reply_has_the_vault_frames_or_the_refusal() {
    let mut bench = Bench::new();
    let records = [record(0, NONE, 0), record(1, NONE, 1)];
    let request = SealRequest {
        records: 2,
        flags: SEAL_LAST,
    };
    let payload = [bytes_of(&request), bytemuck::cast_slice(&records)].concat();
    let (header, reply) = send(&mut bench, MESSAGE_SEAL, &payload, 4096);
    assert_eq!(header.status, STATUS_OK);
    assert_eq!(header.length as usize, reply.len());
    let (seal, frames) = reply.split_at(size_of::<SealReply>());
    let seal: SealReply = pod_read_unaligned(seal);
    assert_eq!((seal.sealed, seal.refusal), (2, STATUS_OK));
    let frames: Vec<u32> = frames.chunks(4).map(pod_read_unaligned).collect();
    assert_eq!(frames, [bench.frame_of(0), bench.frame_of(1)]);

    let (header, reply) = send(&mut bench, MESSAGE_SEAL, &payload, 4096);
    let seal: SealReply = pod_read_unaligned(&reply);
    assert_eq!((header.status, header.length), (STATUS_OK, 8));
    assert_eq!((seal.sealed, seal.refusal), (0, STATUS_STALE));
}

#[test]
fn a_malformed_message_drops_the_batch() {
    let mut bench = Bench::new();
    bench.send(&[record(0, NONE, 0)], 0).unwrap();
    let request = SealRequest {
        records: 1,
        flags: SEAL_LAST,
    };
    let record = record(1, NONE, 1);
    let payload = [bytes_of(&request), bytes_of(&record)].concat();
    // No room for the vault frame.
    let (header, _) = send(&mut bench, MESSAGE_SEAL, &payload, 8 + 8 + 3);
    assert_eq!(header.status, STATUS_MALFORMED);
    bench.engine.check_invariants();
    let (header, _) = send(&mut bench, MESSAGE_SEAL, &payload, 4096);
    assert_eq!(header.status, STATUS_OK);
    assert_eq!(bench.frame_of(0), NONE);
    assert_ne!(bench.frame_of(1), NONE);
}

#[test]
fn a_failed_request_leaves_an_incident_with_its_evidence() {
    let mut bench = Bench::new();
    let sealed = bench.seal(&[record(2, NONE, 0)]).unwrap()[0];
    bench.memory.pool[1][0] = 99;
    let mut facts = report(1);
    facts.drafts_total = 2;
    facts.address = APP_BASE + 4 * 4096 + 8;
    facts.flags = REPORT_ADDRESS;
    facts.registers[REG_RIP] = 0x40_0000;
    facts.backtrace[0] = 0x40_0001;
    facts.thread_name[..6].copy_from_slice(b"worker");
    bench
        .report(&facts, &[draft(2, 1, sealed), draft(3, 2, NONE)])
        .unwrap();
    // What is kept of it is a copy.
    bench.memory.guest_write(1, 5);

    let detail = snapshot::incident(&bench.engine, 1).unwrap();
    assert_eq!(detail.summary.kind, "memory");
    assert_eq!(detail.summary.outcome, IncidentOutcome::Recovered);
    assert_eq!(detail.summary.at_ms, 1234);
    assert_eq!(detail.summary.app.as_deref(), Some("ledger"));
    assert_eq!(detail.summary.domain.as_deref(), Some("alice"));
    assert_eq!(detail.instruction, Some(0x40_0000));
    let request = detail.request().unwrap().clone();
    assert_eq!(request.thread, "worker");
    assert_eq!(request.restored, Restored::Sealed);
    assert_eq!(request.backtrace, [0x40_0001]);
    assert_eq!(request.drafts.len(), 2);
    assert_eq!(request.drafts[0].changed_bytes, Some(1));
    assert_eq!(request.drafts[1].changed_bytes, Some(0));
    assert_eq!(snapshot::incidents(&bench.engine).len(), 1);
    let [change] = &request.drafts[0].changes[..] else {
        panic!("{:?}", request.drafts[0].changes);
    };
    assert_eq!(change.address, APP_BASE + 2 * 4096);
    assert_eq!((&change.old[..], &change.new[..]), (&[0][..], &[99][..]));
    let at = request.address_at.unwrap();
    assert_eq!((at.place, at.behind), (Place::Guard, Some(8)));
    assert_eq!(at.domain.as_deref(), Some("alice"));
}

#[test]
fn an_access_to_address_0_is_not_one_without_an_address() {
    let mut bench = Bench::new();
    bench.report(&report(1), &[]).unwrap();
    let mut null = report(3);
    null.flags = REPORT_ADDRESS;
    bench.report(&null, &[]).unwrap();
    let address = |number| {
        snapshot::incident(&bench.engine, number)
            .unwrap()
            .summary
            .address
    };
    assert_eq!((address(1), address(3)), (None, Some(0)));
}

fn evidence(incident: u64) -> (Evidence, Vec<u8>) {
    let facts = Evidence {
        incident,
        stack: 0x7000,
        stack_low: 0x4000,
        stack_high: 0x8000,
        stack_bytes: 8,
        modules_bytes: 4,
        text_bytes: 2,
        reserved: 0,
    };
    (facts, b"ssssssssmmmmtt".to_vec())
}

#[test]
fn evidence_belongs_to_its_incident_and_comes_once() {
    let mut bench = Bench::new();
    bench.report(&report(1), &[]).unwrap();
    let (facts, bytes) = evidence(1);
    bench.engine.evidence(&facts, &bytes).unwrap();
    bench.engine.evidence(&facts, &[b'x'; 14]).unwrap();
    bench.engine.evidence(&evidence(3).0, &bytes).unwrap();
    let request = bench.request(1);
    let program = request.program.unwrap();
    assert_eq!((program.stack_low, program.stack_high), (0x4000, 0x8000));
    assert_eq!(&program.stack[..], b"ssssssss");
    assert_eq!(&program.modules[..], b"mmmm");
    assert_eq!(program.message, "tt");
}

#[test]
fn evidence_with_wrong_lengths_is_refused() {
    let mut bench = Bench::new();
    bench.report(&report(1), &[]).unwrap();
    let (facts, bytes) = evidence(1);
    let long = Evidence {
        stack_bytes: STACK_MAX + 8,
        ..facts
    };
    let huge = Evidence {
        text_bytes: u32::MAX,
        ..facts
    };
    for (facts, bytes) in [
        (facts, &bytes[1..]),
        (facts, &[0; 15][..]),
        (facts, &[]),
        (long, &[0; STACK_MAX as usize + 14][..]),
        (huge, &bytes[..]),
    ] {
        let refusal = bench.engine.evidence(&facts, bytes).unwrap_err();
        assert_eq!(refusal.status(), STATUS_MALFORMED);
    }
    let request = bench.request(1);
    assert_eq!(request.program, None);
}

/// The changes between two versions of the page at `APP_BASE`, as an incident tells them.
fn changes_of(old: Page, new: Page) -> Vec<ChangeFacts> {
    let mut bench = Bench::new();
    bench.memory.pool[0] = old;
    bench.memory.pool[1] = new;
    let sealed = bench.seal(&[record(0, NONE, 0)]).unwrap()[0];
    bench.report(&report(1), &[draft(0, 1, sealed)]).unwrap();
    bench.request(1).drafts.remove(0).changes
}

#[test]
fn byte_past_a_block_of_an_earlier_page_names_it() {
    let mut bench = Bench::new();
    let block = APP_BASE + 0x400;
    let header = BlockHeader::new(block, 0xc00, 0xc10, State::Live);
    let place = 0x400 - size_of::<BlockHeader>();
    bench.memory.pool[0][place..0x400].copy_from_slice(bytes_of(&header));
    let sealed = bench.seal(&[record(0, NONE, 0)]).unwrap()[0];
    bench.memory.pool[1][2] = 7;
    // Alone, and after a page of the same block that was written as well.
    bench.report(&report(1), &[draft(1, 1, NONE)]).unwrap();
    bench.memory.pool[2] = bench.memory.pool[0];
    bench.memory.pool[2][0x500] = 1;
    bench.memory.pool[3][9] = 7;
    let drafts = [draft(0, 2, sealed), draft(1, 1, NONE), draft(2, 3, NONE)];
    bench.report(&report(3), &drafts).unwrap();
    for (number, drafts) in [(1, 0..1), (3, 1..3)] {
        for dropped in &bench.request(number).drafts[drafts] {
            let change = &dropped.changes[0];
            let found = change.block.as_ref().unwrap();
            assert_eq!((found.address, found.size), (block, 0xc00));
            assert_eq!(found.was, Some(BlockState::Live));
        }
    }
    let request = bench.request(1);
    assert_eq!(request.drafts[0].changes[0].address - (block + 0xc00), 2);
}

/// Puts a block with its header and its red zone at an offset of a page.
fn put_block(page: &mut Page, offset: usize, size: usize, room: usize, state: State) {
    let header = BlockHeader::new(APP_BASE + offset as u64, size, room, state);
    page[offset - size_of::<BlockHeader>()..offset].copy_from_slice(bytes_of(&header));
    page[offset + size..offset + room].fill(0xbd);
}

/// Address, bytes and block of the change in which an offset lies.
fn change_at(changes: &[ChangeFacts], offset: u64) -> (u64, usize, u64, u64) {
    let (change, at) = changes
        .iter()
        .filter_map(|change| Some((change, (APP_BASE + offset).checked_sub(change.address)?)))
        .find(|(change, at)| *at < change.new.len() as u64)
        .unwrap();
    let block = change.block.as_ref().unwrap();
    assert!(at < 4096);
    let (change_at, block_at) = (change.address - APP_BASE, block.address - APP_BASE);
    (change_at, change.new.len(), block_at, block.size)
}

#[test]
fn byte_past_a_new_block_names_the_new_block() {
    let mut old = [0; 4096];
    put_block(&mut old, 0x9d0, 5, 16, State::Live);
    put_block(&mut old, 0x9f0, 0, 512, State::Free);
    old[0x9f0..].fill(0);
    let mut new = old;
    // Made larger in its place and freed, so that the run goes on into the next block's header.
    put_block(&mut new, 0x9d0, 8, 16, State::Freed);
    new[0x9d0..0x9d8].fill(0xdd);
    put_block(&mut new, 0x9f0, 9, 32, State::Live);
    new[0x9f0..0x9fa].fill(b'Z');
    let changes = changes_of(old, new);
    let (from, _, block, size) = change_at(&changes, 0x9f9);
    assert_eq!((from, block, size), (0x9e0, 0x9f0, 9));
    // The audit goes by the size that a freed block had at last.
    let (from, length, block, size) = change_at(&changes, 0x9d4);
    assert_eq!((from, block, size), (0x9c0, 0x9d0, 8));
    assert_eq!(from as usize + length, 0x9d8);
}

#[test]
fn byte_past_the_second_new_block_names_the_second() {
    let old = [0; 4096];
    let mut new = old;
    put_block(&mut new, 0x990, 40, 48, State::Live);
    new[0x990..0x9b8].fill(1);
    put_block(&mut new, 0x9d0, 5, 16, State::Live);
    new[0x9d0..0x9d6].fill(b'Z');
    let changes = changes_of(old, new);
    let (from, _, block, size) = change_at(&changes, 0x9d5);
    assert_eq!((from, block, size), (0x9c0, 0x9d0, 5));
    let (from, _, block, size) = change_at(&changes, 0x9b7);
    assert_eq!((from, block, size), (0x980, 0x990, 40));
}

#[test]
fn change_past_a_block_ends_at_the_next_new_block() {
    let mut old = [0; 4096];
    put_block(&mut old, 0x990, 40, 48, State::Live);
    let mut new = old;
    new[0x9b8] = b'Z';
    put_block(&mut new, 0x9d0, 5, 16, State::Live);
    let changes = changes_of(old, new);
    assert_eq!(change_at(&changes, 0x9b8), (0x9b8, 1, 0x990, 40));
}

#[test]
fn newest_incidents_keep_their_details() {
    let config = EngineConfig {
        incidents: 1024,
        ..EngineConfig::for_frames(4096)
    };
    let mut bench = Bench::with(config);
    let stack = vec![0; STACK_MAX as usize];
    // More than the host keeps of all incidents together.
    for number in 0..1024 {
        let number = 2 * number + 1;
        bench.report(&report(number), &[]).unwrap();
        let facts = Evidence {
            incident: number,
            stack_bytes: STACK_MAX,
            ..Evidence::default()
        };
        bench.engine.evidence(&facts, &stack).unwrap();
    }
    let request = |number| bench.request(number);
    assert!(request(1).details_dropped && request(1).program.is_none());
    assert!(!request(2047).details_dropped && request(2047).program.is_some());
}

#[test]
fn the_driver_cannot_report_hardware_failures() {
    let mut bench = Bench::new();
    for kind in [KIND_CHECKSUM, KIND_POISON] {
        let facts = IncidentReport { kind, ..report(1) };
        let refusal = bench.report(&facts, &[]).unwrap_err();
        assert_eq!(refusal.status(), STATUS_MALFORMED);
    }
    assert!(snapshot::incidents(&bench.engine).is_empty());
}

#[test]
fn a_wrong_report_is_refused_and_leaves_no_incident() {
    let mut bench = Bench::new();
    let good = draft(0, 0, NONE);
    let cases = [
        (report(2), vec![good], STATUS_MALFORMED),
        (report(u64::MAX), vec![good], STATUS_MALFORMED),
        (
            IncidentReport {
                kind: KIND_MAX + 1,
                ..report(1)
            },
            vec![good],
            STATUS_MALFORMED,
        ),
        (
            IncidentReport {
                kind: 0,
                ..report(1)
            },
            vec![good],
            STATUS_MALFORMED,
        ),
        (
            IncidentReport {
                app: 1,
                ..report(1)
            },
            vec![good],
            STATUS_NOT_FOUND,
        ),
        (
            IncidentReport {
                domain: 2,
                ..report(1)
            },
            vec![good],
            STATUS_NOT_FOUND,
        ),
        (
            IncidentReport {
                address_domain: 2,
                ..report(1)
            },
            vec![good],
            STATUS_NOT_FOUND,
        ),
        (report(1), vec![good, good], STATUS_MALFORMED),
        (report(1), vec![draft(4, 0, NONE)], STATUS_NOT_OWNER),
        (report(1), vec![draft(0, 40, NONE)], STATUS_MALFORMED),
        (report(1), vec![draft(0, NONE, NONE)], STATUS_MALFORMED),
        (report(1), vec![draft(0, 0, 200)], STATUS_MALFORMED),
        (report(1), vec![draft(0, 0, IN_POOL | 40)], STATUS_MALFORMED),
    ];
    for (report, drafts, status) in cases {
        let refusal = bench.report(&report, &drafts).unwrap_err();
        assert_eq!(refusal.status(), status, "{report:?} {drafts:?}");
    }
    assert!(snapshot::incidents(&bench.engine).is_empty());
    bench.report(&report(1), &[good]).unwrap();
    let again = bench.report(&report(1), &[]).unwrap_err();
    assert_eq!(again.status(), STATUS_MALFORMED);
}

#[test]
fn to_look_for_pages_is_work_of_a_scrub_too() {
    let mut bench = Bench::with(EngineConfig {
        vault_frames: 4096,
        ..CONFIG
    });
    bench.engine.add_extent(&extent(0, 1, 1024)).unwrap();
    let whole = bench.engine.scrub(
        Duration::ZERO,
        Scope::default(),
        Position::default(),
        u32::MAX,
        &mut bench.memory,
    );
    assert_eq!((whole.found.checked, whole.next), (0, None));
    assert!(whole.looked >= 1024 / 64, "{whole:?}");
    // Small parts come to the end as well, each with no more than its share.
    let (mut position, mut parts) = (Position::default(), 0);
    loop {
        let part = bench.engine.scrub(
            Duration::ZERO,
            Scope::default(),
            position,
            1,
            &mut bench.memory,
        );
        parts += 1;
        assert!(part.looked <= 2, "{part:?}");
        match part.next {
            None => break,
            Some(next) => assert_ne!(std::mem::replace(&mut position, next), next),
        }
    }
    assert!(parts >= 1024 / 64, "{parts}");
}

#[test]
fn a_sealed_write_names_the_owner_of_the_page() {
    let mut bench = Bench::new();
    let frame = bench.seal(&[record(2, NONE, 0)]).unwrap()[0];
    let write = SealedWrite {
        frame,
        instruction: 0x1234,
        cpl: 3,
        cr3: 0x5000,
        registers: std::array::from_fn(|number| number as u64),
        ..SealedWrite::default()
    }
    .with_code(&[0x90; 20]);
    let event = bench.engine.sealed_write(Duration::ZERO, write);
    let detail = snapshot::incident(&bench.engine, event.incident).unwrap();
    assert_eq!(detail.summary.outcome, IncidentOutcome::Stopped);
    assert_eq!(detail.summary.domain.as_deref(), Some("alice"));
    let IncidentFacts::SealedWrite(facts) = detail.facts else {
        panic!("{detail:?}");
    };
    assert_eq!((facts.count, facts.page, facts.user), (1, Some(2), true));
    assert_eq!((facts.cpl, facts.cr3), (3, 0x5000));
    assert_eq!(facts.registers, (0..18).collect::<Vec<u64>>());
    assert_eq!(facts.code, [0x90; CODE_MAX]);
}

fn send(bench: &mut Bench, kind: u32, payload: &[u8], room: usize) -> (ReplyHeader, Vec<u8>) {
    let header = ControlHeader {
        kind,
        length: payload.len() as u32,
    };
    let message = [bytes_of(&header), payload].concat();
    let reply = handle_message(
        &mut bench.engine,
        &mut bench.memory,
        Duration::ZERO,
        &message,
        room,
    );
    let (header, payload) = reply.bytes.split_at(size_of::<ReplyHeader>());
    (pod_read_unaligned(header), payload.to_vec())
}

#[test]
fn a_message_whose_reply_has_no_room_has_no_effect() {
    let kinds = [
        MESSAGE_OPEN_APP,
        MESSAGE_OPEN_DOMAIN,
        MESSAGE_LIST_EXTENTS,
        MESSAGE_LIST_PAGES,
        MESSAGE_ADD_EXTENT,
        MESSAGE_SEAL,
    ];
    for kind in kinds {
        let mut bench = Bench::new();
        let before = snapshot::engine_status(&bench.engine);
        let (header, payload) = send(&mut bench, kind, &[0; 512], 8);
        assert_eq!(header.status, STATUS_MALFORMED, "kind {kind}");
        assert!(payload.is_empty());
        assert_eq!(snapshot::engine_status(&bench.engine), before);
    }
}

/// A part of a message with several reports.
fn part(kind: u32, payload: &[u8]) -> Vec<u8> {
    let header = ControlHeader {
        kind,
        length: payload.len() as u32,
    };
    let mut part = [bytes_of(&header), payload].concat();
    part.resize(part.len().next_multiple_of(8), 0);
    part
}

#[test]
fn reports_in_one_message_count_up_to_the_first_that_is_refused() {
    let mut bench = Bench::new();
    let (facts, bytes) = evidence(1);
    let parts = [
        part(MESSAGE_INCIDENT, bytes_of(&report(1))),
        part(MESSAGE_EVIDENCE, &[bytes_of(&facts), &bytes].concat()),
        part(MESSAGE_INCIDENT, bytes_of(&report(3))),
        // A number that is not new.
        part(MESSAGE_INCIDENT, bytes_of(&report(3))),
        part(MESSAGE_INCIDENT, bytes_of(&report(5))),
    ];
    let (header, reply) = send(&mut bench, MESSAGE_REPORTS, &parts[..3].concat(), 8);
    assert_eq!((header.status, reply.len()), (STATUS_OK, 0));
    assert_eq!(bench.request(1).program.unwrap().message, "tt");
    let (header, _) = send(&mut bench, MESSAGE_REPORTS, &parts[3..].concat(), 8);
    assert_eq!(header.status, STATUS_MALFORMED);
    let kept = snapshot::incidents(&bench.engine);
    let numbers: Vec<u64> = kept.iter().map(|incident| incident.number).collect();
    assert_eq!(numbers, [1, 3]);
}

#[test]
fn parts_of_a_message_must_be_whole_reports() {
    let mut bench = Bench::new();
    let good = part(MESSAGE_INCIDENT, bytes_of(&report(1)));
    let nested = part(MESSAGE_REPORTS, &good);
    let mut long = good.clone();
    long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    for (parts, status) in [
        (&[][..], STATUS_MALFORMED),
        (&good[..good.len() - 1], STATUS_MALFORMED),
        (&good[..4], STATUS_MALFORMED),
        (&long, STATUS_MALFORMED),
        (&nested, STATUS_UNKNOWN),
        (&part(MESSAGE_OPEN_APP, &[]), STATUS_UNKNOWN),
    ] {
        let (header, _) = send(&mut bench, MESSAGE_REPORTS, parts, 8);
        assert_eq!(header.status, status);
    }
    assert!(snapshot::incidents(&bench.engine).is_empty());
}

#[test]
fn a_list_that_is_not_as_long_as_it_says_is_refused() {
    let mut bench = Bench::new();
    let request = SealRequest {
        records: u32::MAX,
        flags: SEAL_LAST,
    };
    for length in [0, 1, 23, 25, 48] {
        let payload = [bytes_of(&request), &vec![0; length]].concat();
        let (header, _) = send(&mut bench, MESSAGE_SEAL, &payload, 4096);
        assert_eq!(header.status, STATUS_MALFORMED);
    }
    let (header, _) = send(&mut bench, 0, &[], 4096);
    assert_eq!(header.status, STATUS_UNKNOWN);
}

#[test]
fn lists_come_in_parts_that_fit_the_reply() {
    let mut bench = Bench::new();
    let records: Vec<SealRecord> = (0..3).map(|page| record(page, NONE, page)).collect();
    bench.seal(&records).unwrap();
    let list = vmsrs_protocol::control::ListDomain {
        app: 0,
        domain: 0,
        first: 0,
        limit: u32::MAX,
    };
    // Room for two entries after both headers.
    let (header, reply) = send(&mut bench, MESSAGE_LIST_PAGES, bytes_of(&list), 8 + 8 + 17);
    assert_eq!((header.status, header.length), (STATUS_OK, 8 + 16));
    let part: vmsrs_protocol::control::ListReply = pod_read_unaligned(&reply[..8]);
    assert_eq!((part.count, part.next), (2, 2));
    let (_, reply) = send(&mut bench, MESSAGE_LIST_EXTENTS, bytes_of(&list), 64);
    let part: vmsrs_protocol::control::ListReply = pod_read_unaligned(&reply[..8]);
    assert_eq!((part.count, part.next), (1, NONE));
}

/// Words that are fields of messages more often than chance would have it.
fn words() -> impl Strategy<Value = Vec<u32>> {
    let word = prop_oneof![
        8 => 0u32..12,
        2 => 60u32..80,
        1 => Just(NONE),
        1 => any::<u32>(),
    ];
    prop::collection::vec(word, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_message_breaks_a_promise(
        messages in prop::collection::vec((0u32..12, words(), any::<bool>(), 0usize..700), 1..40)
    ) {
        let mut bench = Bench::new();
        for (kind, words, is_framed, room) in messages {
            let payload: &[u8] = bytemuck::cast_slice(&words);
            let header = ControlHeader {
                kind,
                length: payload.len() as u32,
            };
            let message = match is_framed {
                true => [bytes_of(&header), payload].concat(),
                false => payload.to_vec(),
            };
            let Bench { engine, memory, .. } = &mut bench;
            let reply = handle_message(engine, memory, Duration::ZERO, &message, room);
            prop_assert!(reply.bytes.len() <= room);
            bench.engine.check_invariants();
        }
    }

    #[test]
    fn a_coalesced_batch_is_the_same_as_its_commits_one_by_one(
        commits in prop::collection::vec(prop::collection::vec(0u32..8, 1..5), 1..12),
        split in 1usize..5,
        mirror in any::<bool>(),
    ) {
        let mut benches = [Bench::new(), Bench::new()];
        for bench in &mut benches {
            if mirror {
                let flags = DOMAIN_MIRROR;
                let alice = OpenDomain { flags, ..domain_key(0, "alice") };
                bench.engine.open_domain(&alice).unwrap();
            }
        }
        let [single, coalesced] = &mut benches;
        // Four pages of each domain.
        let place = |choice: u32| (choice / 4, choice + choice / 4 * 4);
        let mut newest = std::collections::BTreeMap::new();
        for (content, pages) in (1u64..).zip(&commits) {
            let pages: std::collections::BTreeSet<u32> = pages.iter().copied().collect();
            let mut records = Vec::new();
            for (frame, &choice) in (0..).zip(&pages) {
                let (domain, page) = place(choice);
                single.memory.guest_write(frame, content);
                records.push(SealRecord { domain, ..record(page, single.frame_of(page), frame) });
                newest.insert(choice, content);
            }
            single.seal(&records).unwrap();
        }
        let mut records = Vec::new();
        for (frame, (&choice, &content)) in (0..).zip(&newest) {
            let (domain, page) = place(choice);
            coalesced.memory.guest_write(frame, content);
            records.push(SealRecord { domain, ..record(page, NONE, frame) });
        }
        let messages = records.chunks(split).count();
        for (number, records) in records.chunks(split).enumerate() {
            let flags = if number + 1 == messages { SEAL_LAST } else { 0 };
            coalesced.send(records, flags).unwrap();
        }
        for choice in 0..8 {
            let (_, page) = place(choice);
            let contents = [&*single, &*coalesced].map(|bench| {
                Some(bench.frame_of(page))
                    .filter(|&frame| frame != NONE)
                    .map(|frame| bench.memory.content(frame))
            });
            prop_assert_eq!(contents[0], contents[1]);
            prop_assert_eq!(contents[0], newest.get(&choice).copied());
        }
        for state in [FrameState::Sealed, FrameState::Mirror] {
            let count = |bench: &Bench| bench.engine.store.frames.count(state);
            prop_assert_eq!(count(single), count(coalesced));
        }
    }
}
