//! Frames of the pool: commits while a batch is sent, and reports while what they name is superseded
//! (`guest-kmod/pool.c`, `drafts.c`, `batch.c`).

use loom::thread;
use std::sync::Arc;
use vmsrs_loom::check;
use vmsrs_loom::driver::Frames;

/// Both pages together, then the second one alone.
fn two_commits(frames: &Frames) {
    frames.store(0, 1);
    frames.store(1, 1);
    frames.commit();
    frames.store(1, 2);
    frames.commit();
}

/// Another thread that works on the frames.
fn beside(frames: &Arc<Frames>, work: impl FnOnce(&Frames) + 'static) -> thread::JoinHandle<()> {
    let frames = frames.clone();
    thread::spawn(move || work(&frames))
}

/// All that was committed is sealed, and nothing is left in the pool.
fn seal_all(frames: &Frames, expected: [u64; 2]) {
    frames.seal();
    assert_eq!(frames.sealed(), expected);
    assert!(frames.all_free(), "frames are lost");
}

#[test]
fn a_batch_holds_commits_as_a_whole() {
    check(3, || {
        let frames = Arc::new(Frames::default());
        let host = beside(&frames, move |frames| {
            frames.seal();
            let sealed = frames.sealed();
            assert!([[0, 0], [1, 1], [1, 2]].contains(&sealed), "{sealed:?}");
        });
        two_commits(&frames);
        host.join().unwrap();
        seal_all(&frames, [1, 2]);
    });
}

#[test]
fn commits_one_by_one_end_as_one_batch_does() {
    check(2, || {
        let frames = Frames::default();
        frames.store(0, 1);
        frames.store(1, 1);
        frames.commit();
        frames.seal();
        assert_eq!(frames.sealed(), [1, 1]);
        frames.store(1, 2);
        frames.commit();
        seal_all(&frames, [1, 2]);
        let frames = Frames::default();
        two_commits(&frames);
        seal_all(&frames, [1, 2]);
    });
}

#[test]
fn a_page_that_is_committed_again_and_again_is_sealed_in_its_newest_version() {
    check(3, || {
        let frames = Arc::new(Frames::default());
        let host = beside(&frames, move |frames| {
            frames.seal();
            frames.seal();
        });
        for value in 1..4 {
            frames.store(0, value);
            frames.commit();
        }
        host.join().unwrap();
        seal_all(&frames, [3, 0]);
    });
}

/// A reader beside two commits and the host.
fn reader_beside_commits(reads: bool) {
    check(3, move || {
        let frames = Arc::new(Frames::default());
        let reader = beside(&frames, move |frames| {
            let (first, second) = (frames.load(0), frames.load(0));
            assert!(first <= second && second <= 2, "{first}, then {second}");
        });
        let host = beside(&frames, move |frames| frames.seal());
        for value in 1..3 {
            frames.store(0, value);
            frames.commit_expecting(reads);
        }
        reader.join().unwrap();
        host.join().unwrap();
        seal_all(&frames, [2, 0]);
    });
}

#[test]
fn a_reader_sees_committed_versions_alone() {
    reader_beside_commits(true);
}

#[test]
fn a_reader_sees_committed_versions_that_its_fault_maps() {
    reader_beside_commits(false);
}

/// A page that is written and committed twice by the only process, beside the host.
fn page_written_beside_the_host(reads: bool) {
    check(3, move || {
        let frames = Arc::new(Frames::private());
        frames.store(0, 1);
        frames.commit_expecting(reads);
        let host = beside(&frames, move |frames| {
            frames.seal();
            let sealed = frames.sealed();
            assert!([[1, 0], [2, 0]].contains(&sealed), "{sealed:?}");
        });
        frames.store(0, 2);
        frames.store(0, 3);
        frames.store(0, 2);
        frames.commit_expecting(reads);
        host.join().unwrap();
        seal_all(&frames, [2, 0]);
    });
}

#[test]
fn a_page_written_in_place_is_sealed_as_it_was_committed() {
    page_written_beside_the_host(true);
}

#[test]
fn a_page_that_no_commit_has_mapped_is_sealed_as_it_was_committed() {
    page_written_beside_the_host(false);
}

#[test]
fn a_process_that_maps_the_pages_later_sees_committed_versions_alone() {
    check(3, || {
        let frames = Arc::new(Frames::private());
        frames.store(0, 1);
        frames.commit();
        let reader = beside(&frames, move |frames| {
            let (first, second) = (frames.load(0), frames.load(0));
            assert!(
                1 <= first && first <= second && second <= 2,
                "{first}, then {second}"
            );
        });
        let host = beside(&frames, move |frames| frames.seal());
        frames.store(0, 2);
        frames.commit();
        reader.join().unwrap();
        host.join().unwrap();
        seal_all(&frames, [2, 0]);
    });
}

/// A draft is dropped and the page written again, while the report and the batch are sent; `sent_first` says whether
/// the batch may be sent before the draft is dropped.
fn named_by_a_report(frames: Frames, sent_first: bool) {
    let frames = Arc::new(frames);
    frames.store(0, 1);
    frames.commit();
    frames.store(0, 9);
    let seal = || beside(&frames, move |frames| frames.seal());
    let before = sent_first.then(seal);
    let report = frames.discard();
    let host = before.unwrap_or_else(seal);
    let reports = beside(&frames, move |frames| frames.send_report(&report));
    frames.store(0, 2);
    frames.commit();
    host.join().unwrap();
    reports.join().unwrap();
    seal_all(&frames, [2, 0]);
}

#[test]
fn what_a_report_names_stays_until_it_is_answered() {
    check(3, || named_by_a_report(Frames::default(), false));
    check(3, || named_by_a_report(Frames::private(), false));
}

#[test]
fn a_page_written_in_place_and_dropped_is_as_before() {
    check(3, || named_by_a_report(Frames::private(), true));
}
