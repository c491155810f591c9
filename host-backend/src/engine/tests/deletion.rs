//! Domains that are deleted, and cleared.

use super::*;
use vmsrs_protocol::control::DeleteRecord;

fn deletion(domain: u32) -> DeleteRecord {
    DeleteRecord {
        app: 0,
        domain,
        extents: NONE,
        reserved: 0,
    }
}

impl Bench {
    /// Deletes a domain by a batch of its own.
    fn delete(&mut self, domain: u32) {
        self.engine.delete(&[deletion(domain)]).unwrap();
        self.seal(&[]).unwrap();
        self.engine.check_invariants();
    }

    fn find(&self, key: &str) -> Option<Scope> {
        let app = self.engine.store.apps[0].name().to_vec();
        self.engine.find(&app, Some(key.as_bytes()))
    }
}

#[test]
fn a_deletion_counts_when_its_batch_has_arrived() {
    let mut bench = Bench::new();
    let frame = bench.seal(&[record(1, NONE, 0)]).unwrap()[0];
    let pages = bench.engine.store.pages();
    bench.engine.delete(&[deletion(0)]).unwrap();
    assert!(bench.find("alice").is_some());
    // The guest ends.
    bench.engine.reset();
    bench.engine.check_invariants();
    assert!(bench.find("alice").is_some());
    assert_eq!(bench.engine.frame_state(frame), Some(FrameState::Sealed));
    // A page of the domain in the same batch goes with it.
    bench.engine.delete(&[deletion(0)]).unwrap();
    let newer = bench.seal(&[record(1, frame, 3)]).unwrap()[0];
    bench.engine.check_invariants();
    assert_eq!(bench.find("alice"), None);
    for frame in [frame, newer] {
        assert_eq!(bench.engine.frame_state(frame), Some(FrameState::Retired));
    }
    assert_eq!(bench.engine.store.pages(), (pages.0 - 4, pages.1));
    let refusal = bench.engine.list_pages(0, 0, 0, 10).unwrap_err();
    assert_eq!(refusal.status(), STATUS_NOT_FOUND);
    let refusal = bench.engine.add_extent(&extent(0, 0, 4)).unwrap_err();
    assert_eq!(refusal.status(), STATUS_NOT_FOUND);
}

#[test]
fn wrong_deletions_drop_their_batch() {
    let mut bench = Bench::new();
    let wrong = [
        (vec![deletion(2)], STATUS_NOT_FOUND),
        (vec![deletion(NONE)], STATUS_NOT_FOUND),
        (
            vec![DeleteRecord {
                app: 1,
                ..deletion(0)
            }],
            STATUS_NOT_FOUND,
        ),
        (
            vec![deletion(0), deletion(1), deletion(0)],
            STATUS_MALFORMED,
        ),
        (
            vec![DeleteRecord {
                extents: 0,
                ..deletion(0)
            }],
            STATUS_MALFORMED,
        ),
    ];
    for (records, status) in wrong {
        bench.engine.delete(&[deletion(1)]).unwrap();
        let refusal = bench.engine.delete(&records[..]).unwrap_err();
        // The first one was named before, too.
        assert!(refusal.status() == status || records.len() > 1);
        bench.seal(&[]).unwrap();
        bench.engine.check_invariants();
        assert!(bench.find("alice").is_some() && bench.find("bob").is_some());
    }
    bench.delete(0);
    let refusal = bench.engine.delete(&[deletion(0)]).unwrap_err();
    assert_eq!(refusal.status(), STATUS_NOT_FOUND);
}

#[test]
fn a_cleared_domain_keeps_its_first_extent() {
    let mut bench = Bench::new();
    let more = bench.engine.add_extent(&extent(0, 1, 8)).unwrap();
    let frames = bench
        .seal(&[record(0, NONE, 0), record(more.page, NONE, 1)])
        .unwrap();
    let cleared = DeleteRecord {
        extents: 1,
        ..deletion(0)
    };
    bench.engine.delete(&[cleared]).unwrap();
    bench.seal(&[record(0, frames[0], 2)]).unwrap();
    bench.engine.check_invariants();
    let (pages, _) = bench.engine.list_pages(0, 0, 0, 10).unwrap();
    assert_eq!(pages.len(), 1);
    assert_eq!(bench.engine.list_extents(0, 0, 0, 10).unwrap().0.len(), 1);
    assert_eq!(
        bench.engine.frame_state(frames[1]),
        Some(FrameState::Retired)
    );
}

#[test]
fn domains_that_come_and_go_do_not_fill_the_vault() {
    let mut bench = Bench::new();
    let before = (bench.engine.store.pages(), bench.engine.store.apps[0].end());
    let mut bytes = 0;
    for round in 0..1000 {
        let user = OpenDomain {
            flags: DOMAIN_MIRROR,
            pages: 40,
            reuse: 2,
            ..domain_key(0, &format!("user {round}"))
        };
        let opened = bench.engine.open_domain(&user).unwrap();
        assert_eq!(opened.domain, 2);
        let sealed = SealRecord {
            domain: opened.domain,
            ..record(opened.first.page + round % 40, NONE, 7)
        };
        bench.seal(&[sealed]).unwrap();
        bench.delete(opened.domain);
        assert_eq!(
            (bench.engine.store.pages(), bench.engine.store.apps[0].end()),
            before
        );
        match round {
            100 => bytes = bench.engine.store.bytes(),
            101.. => assert!(bench.engine.store.bytes() <= bytes + 64),
            _ => {}
        }
    }
}

#[test]
fn a_number_is_used_again_when_nobody_in_the_guest_knows_it() {
    let mut bench = Bench::new();
    bench.delete(0);
    let open = |bench: &mut Bench, key: &str, reuse| {
        let message = OpenDomain {
            reuse,
            ..domain_key(0, key)
        };
        bench.engine.open_domain(&message).unwrap().domain
    };
    assert_eq!(open(&mut bench, "alice", NONE), 2);
    assert_eq!(open(&mut bench, "carol", 1), 3, "that is bob's");
    assert_eq!(open(&mut bench, "dave", 0), 0);
    bench.delete(2);
    bench.engine.reset();
    assert_eq!(open(&mut bench, "erin", NONE), 2);
    assert_eq!(open(&mut bench, "frank", NONE), 4);
}

#[test]
fn a_report_may_be_late_for_a_deleted_domain() {
    let mut bench = Bench::new();
    bench.delete(1);
    let report = IncidentReport {
        incident: 1,
        kind: KIND_MEMORY,
        domain: 1,
        address_domain: 1,
        drafts: 2,
        ..IncidentReport::zeroed()
    };
    let draft = |domain, page, pool_frame| DroppedDraft {
        domain,
        page,
        pool_frame,
        committed: NONE,
    };
    let drafts = [draft(1, 8, 3), draft(0, 1, 4)];
    let memory = &bench.memory;
    bench
        .engine
        .report(Duration::ZERO, &report, &drafts, memory)
        .unwrap();
    let facts = crate::control::snapshot::incident(&bench.engine, 1).unwrap();
    assert_eq!(facts.request().unwrap().drafts.len(), 1);
}
