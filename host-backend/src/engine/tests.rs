//! What the engine refuses, one by one, and what its calls give.

use std::collections::BTreeMap;
use std::time::Duration;

use bytemuck::{Zeroable, bytes_of, pod_read_unaligned};
use proptest::prelude::*;
use vmsrs_protocol::control::{
    AddExtent, ControlHeader, MESSAGE_ADD_EXTENT, MESSAGE_DISCARD, MESSAGE_GRANT, MESSAGE_INCIDENT,
    MESSAGE_LIST_EXTENTS, MESSAGE_LIST_PAGES, MESSAGE_OPEN_APP, MESSAGE_OPEN_DOMAIN, MESSAGE_SEAL,
    OpenApp, OpenDomain, ReplyHeader, STATUS_HOST_ERROR, STATUS_MALFORMED, STATUS_NO_SPACE,
    STATUS_NOT_FOUND, STATUS_NOT_OWNER, STATUS_OK, STATUS_STALE, STATUS_UNKNOWN, SealReply,
    SealRequest,
};
use vmsrs_protocol::heap::{BlockHeader, State};
use vmsrs_protocol::incident::{
    DroppedDraft, Evidence, IncidentReport, KIND_CHECKSUM, KIND_MAX, KIND_MEMORY, KIND_POISON,
    REG_RIP, REPORT_ADDRESS, STACK_MAX,
};
use vmsrs_protocol::seal::{COMMIT_PAGES_MAX, SEAL_LAST, SealRecord};
use vmsrs_protocol::{
    APP_BASE, EXTENT_MAX_PAGES, FrameRun, KEY_MAX, MAX_APPS, NAME_MAX, NONE, ZERO_FRAME,
};

use super::cleanser::RetiredFrames;
use super::mock::MockMemory;
use super::runs::frames_of;
use super::scrub::{Position, Scope};
use super::{CODE_MAX, Protection, ProtectionError, SealedWrite};
use super::{Call, Engine, EngineConfig, FrameState, Inspect, Page};
use super::{Content, Refusal, Unreadable, checksum, handle_message};
use crate::control::{
    BlockState, ChangeFacts, IncidentFacts, IncidentOutcome, Place, Restored, snapshot,
};

const RUNS: usize = 64;
const CALL: Call = Call {
    at: Duration::from_millis(1234),
    max_runs: RUNS,
};

/// An engine with one app of two domains of four pages each, and eight granted frames.
struct Bench {
    engine: Engine,
    memory: MockMemory,
    frames: Vec<u32>,
}

impl Bench {
    fn new() -> Self {
        Self::with(EngineConfig {
            window_frames: 200,
            pool_frames: 40,
            batch_records: 64,
            evidence_frames: 8,
            incidents: 4,
        })
    }

    fn with(config: EngineConfig) -> Self {
        let mut bench = Self {
            engine: Engine::new(config).unwrap(),
            memory: MockMemory::new(config.window_frames),
            frames: Vec::new(),
        };
        bench.engine.open_app(&app_name("ledger")).unwrap();
        for (domain, key) in [(0, "alice"), (1, "bob")] {
            bench.engine.open_domain(&domain_key(0, key)).unwrap();
            bench.engine.add_extent(&extent(domain, 0, 4)).unwrap();
        }
        let granted = bench.engine.grant(8, RUNS, &mut bench.memory).unwrap();
        bench.frames = granted.into_iter().flat_map(frames_of).collect();
        bench
    }

    fn seal(&mut self, records: &[SealRecord]) -> (u32, Option<Refusal>) {
        let outcome = self.engine.seal(CALL, records, &mut self.memory).unwrap();
        self.engine.check_invariants();
        (outcome.taken, outcome.refusal)
    }

    fn report(
        &mut self,
        report: &IncidentReport,
        drafts: &[DroppedDraft],
    ) -> Result<Vec<FrameRun>, Refusal> {
        let granted = self.engine.report(CALL, report, drafts, &mut self.memory);
        self.engine.check_invariants();
        granted
    }

    fn state(&self, frame: u32) -> FrameState {
        self.engine.frame_state(frame).unwrap()
    }

    fn frame_of(&self, page: u32) -> u32 {
        self.engine.store.apps[0].frame(page)
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

/// A commit of one page of domain 0.
fn record(page: u32, old_frame: u32, new_frame: u32) -> SealRecord {
    SealRecord {
        tag: 7,
        app: 0,
        domain: 0,
        page,
        old_frame,
        new_frame,
        flags: SEAL_LAST,
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

fn draft(page: u32, frame: u32, committed: u32) -> DroppedDraft {
    DroppedDraft {
        domain: 0,
        page,
        frame,
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
fn domains_are_limited_by_the_window() {
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
fn a_full_window_still_grants_a_full_pool() {
    let mut bench = Bench::new();
    let (used, room) = bench.engine.store.pages();
    let mut index = 1;
    let mut page = used;
    while bench.engine.add_extent(&extent(0, index, 4)).is_ok() {
        index += 1;
        page += 4;
    }
    assert!(room - page < 4);
    // Commit every page there is, in batches, with the frames that come back.
    let bobs = 8..12;
    let pages: Vec<(u32, u32)> = (0..4)
        .chain(bobs.clone())
        .chain(16..page + 8)
        .map(|page| (u32::from(bobs.contains(&page)), page))
        .collect();
    for &(domain, page) in &pages {
        let frame = bench.frames.remove(0);
        let record = SealRecord {
            domain,
            ..record(page, NONE, frame)
        };
        let outcome = bench
            .engine
            .seal(CALL, &[record], &mut bench.memory)
            .unwrap();
        assert_eq!((outcome.taken, outcome.refusal), (1, None));
        bench
            .frames
            .extend(outcome.granted.into_iter().flat_map(frames_of));
    }
    bench.engine.check_invariants();
    let status = snapshot::engine_status(&bench.engine);
    assert_eq!(status.sealed_frames, page + 1);
    let granted = bench
        .engine
        .grant(u32::MAX, RUNS, &mut bench.memory)
        .unwrap();
    let granted: u32 = granted.iter().map(|run| run.count).sum();
    assert_eq!(granted + status.granted_frames, status.pool_frames);
}

#[test]
fn a_grant_keeps_to_the_pool_and_to_the_room_for_runs() {
    let mut bench = Bench::new();
    assert_eq!(bench.engine.grant(5, 0, &mut bench.memory), Ok(Vec::new()));
    let granted = bench.engine.grant(1000, 1, &mut bench.memory).unwrap();
    assert_eq!(granted.len(), 1);
    assert_eq!(granted[0].count, 32);
    assert_eq!(bench.engine.grant(1, 1, &mut bench.memory), Ok(Vec::new()));
}

#[test]
fn failed_grant_leaves_frames_free() {
    let mut bench = Bench::new();
    bench.memory.fails_after = Some(0);
    let refusal = bench.engine.grant(4, RUNS, &mut bench.memory).unwrap_err();
    assert_eq!(refusal.status(), STATUS_HOST_ERROR);
    bench.engine.check_invariants();
    assert_eq!(snapshot::engine_status(&bench.engine).granted_frames, 8);
    assert_eq!(bench.memory.writable.iter().filter(|&&w| w).count(), 8);
}

#[test]
fn sealing_protects_and_retires_the_old_frame() {
    let mut bench = Bench::new();
    let (first, second) = (bench.frames[0], bench.frames[1]);
    assert_eq!(bench.seal(&[record(2, NONE, first)]), (1, None));
    assert_eq!(bench.frame_of(2), first);
    assert!(!bench.memory.writable[first as usize]);
    assert_eq!(bench.seal(&[record(2, first, second)]), (1, None));
    assert_eq!(bench.frame_of(2), second);
    assert_eq!(bench.state(first), FrameState::Retired);
}

#[test]
fn a_page_committed_twice_in_a_batch_keeps_the_last_version() {
    let mut bench = Bench::new();
    let (first, second) = (bench.frames[0], bench.frames[1]);
    let records = [record(2, NONE, first), record(2, first, second)];
    assert_eq!(bench.seal(&records), (2, None));
    assert_eq!(bench.frame_of(2), second);
    assert_eq!(bench.state(first), FrameState::Retired);
    assert!(!bench.memory.writable[first as usize]);
}

#[test]
fn refused_commit_keeps_earlier_ones() {
    let frame = |bench: &Bench, index: usize| bench.frames[index];
    type Spoil = fn(&mut SealRecord);
    let cases: [(u32, Spoil); 12] = [
        (STATUS_STALE, |record| record.old_frame = 5),
        (STATUS_STALE, |record| record.old_frame = ZERO_FRAME),
        (STATUS_NOT_OWNER, |record| record.page = 4),
        (STATUS_NOT_OWNER, |record| record.page = 8),
        (STATUS_NOT_OWNER, |record| record.page = u32::MAX),
        (STATUS_NOT_OWNER, |record| record.new_frame = ZERO_FRAME),
        (STATUS_NOT_OWNER, |record| record.new_frame = 150),
        (STATUS_NOT_OWNER, |record| record.new_frame = NONE),
        (STATUS_NOT_FOUND, |record| record.domain = 2),
        (STATUS_NOT_FOUND, |record| record.app = 1),
        (STATUS_MALFORMED, |record| record.tag = 0),
        (STATUS_MALFORMED, |record| record.flags |= 4),
    ];
    for (status, spoil) in cases {
        let mut bench = Bench::new();
        let good = record(0, NONE, frame(&bench, 0));
        let mut part = record(1, NONE, frame(&bench, 1));
        part.flags = 0;
        let mut bad = record(2, NONE, frame(&bench, 2));
        spoil(&mut bad);
        // Both records of a commit have the same tag, whatever it is.
        part.tag = bad.tag;
        let after = record(3, NONE, frame(&bench, 3));
        let (taken, refusal) = bench.seal(&[good, part, bad, after]);
        assert_eq!(taken, 1);
        assert_eq!(refusal.map(Refusal::status), Some(status), "{bad:?}");
        assert_eq!(bench.frame_of(0), frame(&bench, 0));
        for page in 1..4 {
            assert_eq!(bench.frame_of(page), NONE);
            let frame = frame(&bench, page as usize);
            assert_eq!(bench.state(frame), FrameState::Granted);
            assert!(bench.memory.writable[frame as usize]);
        }
    }
}

#[test]
fn a_frame_cannot_hold_two_pages_of_a_commit() {
    let mut bench = Bench::new();
    let frame = bench.frames[0];
    let mut first = record(0, NONE, frame);
    first.flags = 0;
    let (taken, refusal) = bench.seal(&[first, record(1, NONE, frame)]);
    assert_eq!(taken, 0);
    assert_eq!(refusal.map(Refusal::status), Some(STATUS_NOT_OWNER));
}

#[test]
fn a_commit_with_two_tags_is_refused() {
    let mut bench = Bench::new();
    let mut first = record(0, NONE, bench.frames[0]);
    first.flags = 0;
    let mut second = record(1, NONE, bench.frames[1]);
    second.tag = 8;
    let (_, refusal) = bench.seal(&[first, second]);
    assert_eq!(refusal.map(Refusal::status), Some(STATUS_MALFORMED));
}

#[test]
fn multi_message_commit_is_sealed_at_its_last_record() {
    let mut bench = Bench::new();
    let mut first = record(0, NONE, bench.frames[0]);
    first.flags = 0;
    assert_eq!(bench.seal(&[first]), (1, None));
    assert_eq!(bench.frame_of(0), NONE);
    let last = record(1, NONE, bench.frames[1]);
    assert_eq!(bench.seal(&[last]), (1, None));
    assert_eq!(bench.frame_of(0), bench.frames[0]);
    assert_eq!(bench.frame_of(1), bench.frames[1]);
}

#[test]
fn frames_of_an_unfinished_commit_cannot_be_dropped() {
    let mut bench = Bench::new();
    let frame = bench.frames[0];
    let mut first = record(0, NONE, frame);
    first.flags = 0;
    bench.seal(&[first]);
    let refusal = bench
        .engine
        .discard(&[frame], RUNS, &mut bench.memory)
        .unwrap_err();
    assert_eq!(refusal.status(), STATUS_NOT_OWNER);
    let refusal = bench.report(&report(1), &[draft(0, frame, NONE)]);
    assert_eq!(refusal.unwrap_err().status(), STATUS_NOT_OWNER);
}

#[test]
fn a_reset_drops_an_unfinished_commit_and_keeps_sealed_pages() {
    let mut bench = Bench::new();
    bench.seal(&[record(3, NONE, bench.frames[3])]);
    let mut first = record(0, NONE, bench.frames[0]);
    first.flags = 0;
    bench.seal(&[first]);
    bench.engine.reset(&mut bench.memory);
    bench.engine.check_invariants();
    assert!(!bench.memory.writable.contains(&true));
    assert_eq!(snapshot::engine_status(&bench.engine).granted_frames, 0);
    assert_eq!(bench.frame_of(3), bench.frames[3]);
    // The rest of the commit must not become a commit of its own.
    let (_, refusal) = bench.seal(&[record(1, NONE, bench.frames[1])]);
    assert_eq!(refusal.map(Refusal::status), Some(STATUS_NOT_OWNER));
    assert_eq!(bench.engine.open_app(&app_name("ledger")).unwrap().app, 0);
}

#[test]
fn guest_down_is_an_incident_only_with_drafts() {
    let mut bench = Bench::new();
    let at = Duration::from_millis(5);
    bench.memory.guest_write(bench.frames[3], 7);
    bench.seal(&[record(3, NONE, bench.frames[3])]);
    bench.memory.guest_write(bench.frames[0], 8);
    let Bench { engine, memory, .. } = &mut bench;
    engine.reset(memory);
    engine.guest_down(at, "the guest reset itself");
    engine.check_invariants();
    assert!(!memory.writable.contains(&true));
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
    assert_eq!((detail.granted_frames, detail.written_frames), (8, 1));
    assert_eq!(bench.frame_of(3), bench.frames[3]);
    assert_eq!(bench.memory.content[bench.frames[3] as usize], 7);

    let Bench { engine, memory, .. } = &mut bench;
    engine.reset(memory);
    engine.guest_down(at, "the guest reset itself");
    assert_eq!(snapshot::incidents(engine).len(), 1);
    let status = snapshot::engine_status(engine);
    assert_eq!((status.resets, status.granted_frames), (2, 0));
    assert_eq!(status.incidents[0].what, "guest-down");
}

#[test]
fn old_drafts_are_not_blamed_on_the_next_boot() {
    let mut bench = Bench::new();
    bench.memory.guest_write(bench.frames[0], 8);
    bench.engine.reset(&mut bench.memory);
    bench.engine.driver_started();
    bench.engine.guest_down(Duration::ZERO, "a test");
    assert_eq!(snapshot::incidents(&bench.engine), []);
}

#[test]
fn oversized_commit_is_refused_early() {
    let mut bench = Bench::with(EngineConfig {
        window_frames: COMMIT_PAGES_MAX * 2,
        pool_frames: COMMIT_PAGES_MAX + 16,
        batch_records: 64,
        evidence_frames: 8,
        incidents: 4,
    });
    let granted = bench
        .engine
        .grant(u32::MAX, RUNS, &mut bench.memory)
        .unwrap();
    let mut frames = granted.into_iter().flat_map(frames_of);
    let mut sent = 0;
    let refusal = loop {
        let records: Vec<SealRecord> = frames
            .by_ref()
            .take(64)
            .map(|frame| SealRecord {
                flags: 0,
                ..record(0, NONE, frame)
            })
            .collect();
        let outcome = bench
            .engine
            .seal(CALL, &records, &mut bench.memory)
            .unwrap();
        match outcome.refusal {
            None => sent += outcome.taken,
            Some(refusal) => break refusal,
        }
    };
    assert_eq!(refusal.status(), STATUS_NO_SPACE);
    assert_eq!(sent, COMMIT_PAGES_MAX);
    bench.engine.check_invariants();
    assert_eq!(snapshot::engine_status(&bench.engine).staged_pages, 0);
}

#[test]
fn a_message_with_too_many_records_is_refused() {
    let mut bench = Bench::new();
    let records = vec![record(0, NONE, 1); 65];
    let refusal = bench.engine.seal(CALL, &records, &mut bench.memory);
    assert_eq!(refusal.unwrap_err().status(), STATUS_MALFORMED);
}

#[test]
fn failed_seal_has_no_effect() {
    let mut bench = Bench::new();
    let mut first = record(0, NONE, bench.frames[0]);
    first.flags = 0;
    bench.seal(&[first]);
    // Two runs that nothing bridges: the second change of protection fails half-way.
    let records = [
        record(1, NONE, bench.frames[2]),
        record(2, NONE, bench.frames[4]),
    ];
    bench.memory.fails_after = Some(1);
    let (taken, refusal) = bench.seal(&records);
    assert_eq!(taken, 0);
    assert_eq!(refusal.map(Refusal::status), Some(STATUS_HOST_ERROR));
    for &frame in &bench.frames {
        assert_eq!(bench.state(frame), FrameState::Granted);
        assert!(bench.memory.writable[frame as usize]);
    }
    assert_eq!(bench.seal(&records), (2, None));
    for page in 0..3 {
        assert_eq!(bench.frame_of(page), bench.frames[page as usize * 2]);
    }
}

#[test]
fn adjacent_frames_are_sealed_together() {
    let mut bench = Bench::new();
    let records: Vec<SealRecord> = (0..4)
        .map(|page| record(page, NONE, bench.frames[3 - page as usize]))
        .collect();
    let before = bench.memory.changes;
    let call = Call {
        max_runs: 0,
        ..CALL
    };
    bench
        .engine
        .seal(call, &records, &mut bench.memory)
        .unwrap();
    assert_eq!(bench.memory.changes - before, 1);
}

#[test]
fn a_failed_request_leaves_an_incident_with_its_evidence() {
    let mut bench = Bench::new();
    bench.seal(&[record(2, NONE, bench.frames[0])]);
    let evidence = bench.frames[1];
    bench.memory.guest_write(evidence, 99);
    let mut facts = report(1);
    facts.drafts_total = 2;
    facts.address = APP_BASE + 4 * 4096 + 8;
    facts.flags = REPORT_ADDRESS;
    facts.registers[REG_RIP] = 0x40_0000;
    facts.backtrace[0] = 0x40_0001;
    facts.thread_name[..6].copy_from_slice(b"worker");
    let drafts = [
        draft(2, evidence, bench.frames[0]),
        draft(3, bench.frames[2], NONE),
    ];
    let granted = bench.report(&facts, &drafts).unwrap();
    assert_eq!(granted.iter().map(|run| run.count).sum::<u32>(), 2);
    assert_eq!(bench.state(evidence), FrameState::Evidence);
    assert!(!bench.memory.writable[evidence as usize]);

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
    assert_eq!(request.drafts[0].changed_bytes, 1);
    assert_eq!(request.drafts[0].frame, Some(evidence));
    assert_eq!(request.drafts[1].changed_bytes, 0);
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
    let request = snapshot::incident(&bench.engine, 1)
        .unwrap()
        .request()
        .unwrap()
        .clone();
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
    let request = snapshot::incident(&bench.engine, 1)
        .unwrap()
        .request()
        .unwrap()
        .clone();
    assert_eq!(request.program, None);
}

#[test]
fn byte_past_a_block_of_an_earlier_page_names_it() {
    let mut bench = Bench::new();
    // The mock's pages have content in their first 8 bytes alone: a page-wide memory of its own.
    let block = APP_BASE + 0x400;
    let mut pages = Pages::default();
    let header = BlockHeader::new(block, 0xc00, 16, State::Live);
    let place = 0x400 - size_of::<BlockHeader>();
    let sealed = bench.frames[0];
    pages.0.entry(sealed).or_insert([0; 4096])[place..0x400].copy_from_slice(bytes_of(&header));
    bench.seal(&[record(0, NONE, sealed)]);
    let dropped = bench.frames[1];
    pages.0.entry(dropped).or_insert([0; 4096])[2] = 7;
    bench
        .engine
        .report(CALL, &report(1), &[draft(1, dropped, NONE)], &mut pages)
        .unwrap();
    let request = snapshot::incident(&bench.engine, 1)
        .unwrap()
        .request()
        .unwrap()
        .clone();
    let change = &request.drafts[0].changes[0];
    let found = change.block.as_ref().unwrap();
    assert_eq!((found.address, found.size), (block, 0xc00));
    assert_eq!(change.address - (found.address + found.size), 2);
    assert_eq!(found.was, Some(BlockState::Live));
}

/// The changes between two versions of the page at `APP_BASE`, as an incident tells them.
fn changes_of(old: Page, new: Page) -> Vec<ChangeFacts> {
    let mut bench = Bench::new();
    let mut pages = Pages::default();
    let (sealed, dropped) = (bench.frames[0], bench.frames[1]);
    pages.0.insert(sealed, old);
    pages.0.insert(dropped, new);
    bench.seal(&[record(0, NONE, sealed)]);
    let drafts = [draft(0, dropped, sealed)];
    (bench.engine)
        .report(CALL, &report(1), &drafts, &mut pages)
        .unwrap();
    let mut request = snapshot::incident(&bench.engine, 1)
        .unwrap()
        .request()
        .unwrap()
        .clone();
    request.drafts.remove(0).changes
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

/// Whole pages, by frame.
#[derive(Default)]
struct Pages(BTreeMap<u32, Page>);

impl Inspect for Pages {
    fn read(&self, frame: u32, content: &mut Page) {
        *content = self.0.get(&frame).copied().unwrap_or([0; 4096]);
    }
}

impl Content for Pages {
    fn checksum(&self, frame: u32) -> Result<u32, Unreadable> {
        let mut content = [0; 4096];
        self.read(frame, &mut content);
        Ok(checksum(&content))
    }

    fn copy(&mut self, from: u32, to: u32) -> Result<(), Unreadable> {
        self.replace(to, Some(from))
    }

    fn replace(&mut self, frame: u32, from: Option<u32>) -> Result<(), Unreadable> {
        let mut content = [0; 4096];
        if let Some(from) = from {
            self.read(from, &mut content);
        }
        self.0.insert(frame, content);
        Ok(())
    }
}

impl Protection for Pages {
    fn protect(&mut self, _: FrameRun) -> Result<(), ProtectionError> {
        Ok(())
    }

    fn unprotect(&mut self, _: FrameRun) -> Result<(), ProtectionError> {
        Ok(())
    }
}

#[test]
fn newest_incidents_keep_their_details() {
    let config = EngineConfig {
        incidents: 1024,
        ..EngineConfig::for_window(4096)
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
    let request = |number| {
        snapshot::incident(&bench.engine, number)
            .unwrap()
            .request()
            .unwrap()
            .clone()
    };
    assert!(request(1).details_dropped && request(1).program.is_none());
    assert!(!request(2047).details_dropped && request(2047).program.is_some());
}

#[test]
fn the_verdict_says_what_a_page_goes_back_to() {
    let mut bench = Bench::new();
    bench.seal(&[record(2, NONE, bench.frames[0])]);
    let cases = [
        (1, bench.frames[0], bench.frames[1], Restored::Sealed),
        // Committed and still in the driver's batch.
        (3, bench.frames[7], bench.frames[2], Restored::Committed),
        (5, ZERO_FRAME, bench.frames[3], Restored::Unknown),
        (7, u32::MAX - 1, bench.frames[4], Restored::Unknown),
    ];
    for (number, committed, frame, restored) in cases {
        bench
            .report(&report(number), &[draft(2, frame, committed)])
            .unwrap();
        let request = snapshot::incident(&bench.engine, number)
            .unwrap()
            .request()
            .unwrap()
            .clone();
        assert_eq!(request.restored, restored, "committed {committed}");
    }
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
    let frame = bench.frames[0];
    let good = draft(0, frame, NONE);
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
        (report(1), vec![draft(4, frame, NONE)], STATUS_NOT_OWNER),
        (
            report(1),
            vec![draft(0, ZERO_FRAME, NONE)],
            STATUS_NOT_OWNER,
        ),
        (report(1), vec![draft(0, NONE, NONE)], STATUS_NOT_OWNER),
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
fn old_evidence_and_old_incidents_make_room_for_new_ones() {
    let mut bench = Bench::new();
    for number in 0..10u64 {
        let drafts: Vec<DroppedDraft> = bench
            .frames
            .drain(..3)
            .zip(0..3)
            .map(|(frame, page)| draft(page, frame, NONE))
            .collect();
        let granted = bench.report(&report(number * 2 + 1), &drafts).unwrap();
        bench.frames.extend(granted.into_iter().flat_map(frames_of));
    }
    let kept: Vec<u64> = bench
        .engine
        .incidents()
        .iter()
        .map(|incident| incident.number)
        .collect();
    assert_eq!(kept, [13, 15, 17, 19]);
    // Eight frames of evidence: two incidents with three each.
    assert_eq!(snapshot::engine_status(&bench.engine).evidence_frames, 6);
    let oldest = snapshot::incident(&bench.engine, 13)
        .unwrap()
        .request()
        .unwrap()
        .clone();
    assert_eq!(oldest.drafts.len(), 3);
    assert!(oldest.drafts.iter().all(|draft| draft.frame.is_none()));
    assert_eq!(
        snapshot::engine_status(&bench.engine).incidents[0].count,
        10
    );
}

#[test]
fn report_beyond_the_evidence_keeps_the_first_drafts() {
    let mut bench = Bench::new();
    bench.engine.add_extent(&extent(0, 1, 12)).unwrap();
    let more = bench.engine.grant(8, RUNS, &mut bench.memory).unwrap();
    bench.frames.extend(more.into_iter().flat_map(frames_of));
    let pages = (0..4).chain(16..28);
    let drafts: Vec<DroppedDraft> = pages
        .zip(&bench.frames)
        .map(|(page, &frame)| draft(page, frame, NONE))
        .collect();
    assert_eq!(drafts.len(), 16);
    bench.report(&report(1), &drafts).unwrap();
    let request = snapshot::incident(&bench.engine, 1)
        .unwrap()
        .request()
        .unwrap()
        .clone();
    let kept = request.drafts.iter().filter(|draft| draft.frame.is_some());
    assert_eq!(kept.count(), 8);
    assert_eq!(snapshot::engine_status(&bench.engine).retired_frames, 8);
}

#[test]
fn invalid_discard_is_refused() {
    let mut bench = Bench::new();
    let frame = bench.frames[0];
    for (frames, status) in [
        (vec![frame, frame], STATUS_MALFORMED),
        (vec![frame, 0], STATUS_NOT_OWNER),
        (vec![frame, NONE], STATUS_NOT_OWNER),
    ] {
        let refusal = bench.engine.discard(&frames, RUNS, &mut bench.memory);
        assert_eq!(refusal.unwrap_err().status(), status);
        assert_eq!(bench.state(frame), FrameState::Granted);
    }
    bench
        .engine
        .discard(&[frame], RUNS, &mut bench.memory)
        .unwrap();
    assert_eq!(bench.state(frame), FrameState::Retired);
}

#[test]
fn retired_frame_is_granted_only_after_wiping() {
    let mut bench = Bench::new();
    let frame = bench.frames[0];
    bench.memory.guest_write(frame, 5);
    bench
        .engine
        .discard(&[frame], RUNS, &mut bench.memory)
        .unwrap();
    let retired = bench.engine.take_retired(100);
    assert_eq!(retired.runs().len(), 1);
    assert!(bench.engine.take_retired(100).is_empty());
    assert_eq!(bench.state(frame), FrameState::Retired);
    bench.memory.wipe(&retired);
    assert!(!bench.engine.cleansed(retired));
    assert_eq!(bench.state(frame), FrameState::Free);
}

#[test]
fn unwipeable_frame_stays_retired() {
    let mut bench = Bench::new();
    let frames: Vec<u32> = bench.frames.drain(..5).collect();
    bench
        .engine
        .discard(&frames, RUNS, &mut bench.memory)
        .unwrap();
    let retired = bench.engine.take_retired(100);
    let (clean, left) = retired.wipe_each(|frame| frame != frames[2]);
    bench.engine.cleansed(clean);
    for &frame in &frames {
        let expected = match frame == frames[2] {
            true => FrameState::Retired,
            false => FrameState::Free,
        };
        assert_eq!(bench.state(frame), expected, "frame {frame}");
    }
    let mut again = RetiredFrames::default();
    again.add(left);
    let (clean, left) = again.wipe_each(|_| true);
    assert!(left.is_empty());
    bench.engine.cleansed(clean);
    assert_eq!(bench.state(frames[2]), FrameState::Free);
}

#[test]
fn to_look_for_pages_is_work_of_a_scrub_too() {
    let mut bench = Bench::with(EngineConfig {
        window_frames: 4096,
        pool_frames: 40,
        batch_records: 64,
        evidence_frames: 8,
        incidents: 4,
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
    let frame = bench.frames[0];
    bench.seal(&[record(2, NONE, frame)]);
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

#[test]
fn what_the_host_keeps_is_at_most_32_bytes_a_page() {
    // The worst case: every domain has a single extent of the smallest size.
    let pages = 1 << 18;
    let mut bench = Bench::with(EngineConfig {
        window_frames: pages + 8192,
        pool_frames: 4096,
        batch_records: 64,
        evidence_frames: 64,
        incidents: 4,
    });
    let mut domains = 2;
    while domains * 4 < pages {
        let key = format!("user-{domains:010}");
        let reply = bench.engine.open_domain(&domain_key(0, &key)).unwrap();
        bench
            .engine
            .add_extent(&extent(reply.domain, 0, 4))
            .unwrap();
        domains += 1;
    }
    let status = snapshot::engine_status(&bench.engine);
    assert_eq!(status.pages, pages);
    let bytes = status.metadata_bytes as f64 / f64::from(status.pages);
    assert!(bytes <= 32.0, "{bytes} bytes a page");
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
        MESSAGE_GRANT,
        MESSAGE_SEAL,
        MESSAGE_INCIDENT,
        MESSAGE_DISCARD,
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

#[test]
fn seal_reply_tells_what_was_taken_and_refused() {
    let mut bench = Bench::new();
    let records = [
        record(0, NONE, bench.frames[0]),
        record(1, ZERO_FRAME, bench.frames[1]),
    ];
    let request = SealRequest {
        records: 2,
        reserved: 0,
    };
    let payload = [bytes_of(&request), bytemuck::cast_slice(&records)].concat();
    let (header, reply) = send(&mut bench, MESSAGE_SEAL, &payload, 4096);
    assert_eq!(header.status, STATUS_OK);
    let seal: SealReply = pod_read_unaligned(&reply[..size_of::<SealReply>()]);
    assert_eq!((seal.sealed, seal.refusal), (1, STATUS_STALE));
    assert_eq!(seal.runs, 1);
    assert_eq!(header.length as usize, reply.len());
}

#[test]
fn a_list_that_is_not_as_long_as_it_says_is_refused() {
    let mut bench = Bench::new();
    let request = SealRequest {
        records: u32::MAX,
        reserved: 0,
    };
    for length in [0, 1, 31, 33, 64] {
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
    let records: Vec<SealRecord> = (0..3)
        .map(|page| record(page, NONE, bench.frames[page as usize]))
        .collect();
    bench.seal(&records);
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
            for (frame, &writable) in (0u32..).zip(&bench.memory.writable) {
                prop_assert_eq!(bench.engine.is_protected(frame), !writable);
            }
        }
    }
}
