//! Drafts: faults of a request's threads while it is failed, committed, or the device goes
//! (`guest-kmod/page.c`, `drafts.c`, `request.c`, `commit.c`, `fail.c`).

use loom::thread;
use std::sync::Arc;
use vmsrs_loom::check;
use vmsrs_loom::driver::Pages;

/// The request that fails, and another user's.
const GUILTY: u64 = 1;
const INNOCENT: u64 = 2;

/// The innocent request: if it gets the domain, it sees the committed version and changes it.
fn innocent(pages: &Pages, domain: usize) -> bool {
    if !pages.try_lock(domain, INNOCENT) {
        return false;
    }
    assert_eq!(
        pages.load(domain),
        Ok(0),
        "a partial change is visible under the lock"
    );
    pages.store(domain, INNOCENT, 20).unwrap();
    assert_eq!(pages.load(domain), Ok(20));
    pages.commit(INNOCENT).unwrap();
    pages.release(domain, INNOCENT);
    true
}

/// A member of the guilty request writes while the request is failed; `drafted` says whether it had
/// a draft before.
fn a_late_write(drafted: bool) {
    check(4, move || {
        let pages = Arc::new(Pages::default());
        assert!(pages.try_lock(0, GUILTY));
        if drafted {
            pages.store(0, GUILTY, 9).unwrap();
        }
        let member = {
            let pages = pages.clone();
            thread::spawn(move || {
                for value in 10..12 {
                    if pages.store(0, GUILTY, value).is_err() {
                        break;
                    }
                }
            })
        };
        let watch = {
            let pages = pages.clone();
            thread::spawn(move || pages.fail(GUILTY))
        };
        let entered = innocent(&pages, 0);
        member.join().unwrap();
        watch.join().unwrap();
        let expected = if entered { 20 } else { 0 };
        assert_eq!(pages.committed(0), expected);
        assert_eq!(pages.load(0), Ok(expected));
        assert!(pages.store(0, GUILTY, 12).is_err());
        assert!(entered || innocent(&pages, 0), "the lock is free");
    });
}

#[test]
fn a_first_write_racing_with_the_failure_never_shows() {
    a_late_write(false);
}

#[test]
fn a_further_write_racing_with_the_failure_never_shows() {
    a_late_write(true);
}

#[test]
fn a_commit_that_races_with_the_failure_is_whole_or_not_at_all() {
    check(4, || {
        let pages = Arc::new(Pages::default());
        for domain in 0..2 {
            assert!(pages.try_lock(domain, GUILTY));
            pages.store(domain, GUILTY, 10).unwrap();
        }
        let member = {
            let pages = pages.clone();
            thread::spawn(move || {
                let committed = pages.commit(GUILTY).is_ok();
                pages.release(0, GUILTY);
                pages.release(1, GUILTY);
                committed
            })
        };
        let watch = {
            let pages = pages.clone();
            thread::spawn(move || pages.fail(GUILTY))
        };
        if pages.try_lock(0, INNOCENT) {
            if pages.try_lock(1, INNOCENT) {
                assert_eq!(pages.load(0), pages.load(1));
                pages.release(1, INNOCENT);
            }
            pages.release(0, INNOCENT);
        }
        let committed = member.join().unwrap();
        watch.join().unwrap();
        let expected = if committed { 10 } else { 0 };
        assert_eq!(
            (pages.committed(0), pages.committed(1)),
            (expected, expected)
        );
    });
}

#[test]
fn a_request_that_is_overdue_while_it_commits_goes_on_in_no_other_domain() {
    check(4, || {
        let pages = Arc::new(Pages::default());
        for domain in 0..2 {
            assert!(pages.try_lock(domain, GUILTY));
        }
        pages.store(0, GUILTY, 10).unwrap();
        let watch = {
            let pages = pages.clone();
            thread::spawn(move || {
                pages.fail_overdue(GUILTY);
                assert!(pages.store(1, GUILTY, 11).is_err());
            })
        };
        let committed = pages.commit(GUILTY).is_ok();
        watch.join().unwrap();
        assert!(pages.commit(GUILTY).is_err());
        let expected = if committed { 10 } else { 0 };
        assert_eq!((pages.committed(0), pages.committed(1)), (expected, 0));
    });
}

#[test]
fn a_members_write_is_in_this_commit_or_in_the_next() {
    check(4, || {
        let pages = Arc::new(Pages::default());
        assert!(pages.try_lock(0, GUILTY));
        pages.store(0, GUILTY, 10).unwrap();
        let member = {
            let pages = pages.clone();
            thread::spawn(move || pages.store(0, GUILTY, 11).unwrap())
        };
        pages.commit(GUILTY).unwrap();
        let first = pages.committed(0);
        assert!(first == 10 || first == 11);
        member.join().unwrap();
        assert_eq!(
            pages.committed(0),
            first,
            "a committed version does not change"
        );
        pages.commit(GUILTY).unwrap();
        assert_eq!(pages.committed(0), 11);
    });
}

#[test]
fn no_write_reaches_a_frame_after_the_device_has_gone() {
    check(4, || {
        let pages = Arc::new(Pages::default());
        assert!(pages.try_lock(0, GUILTY));
        let writer = {
            let pages = pages.clone();
            thread::spawn(move || {
                while pages.store(0, GUILTY, 10).is_ok() {
                    loom::thread::yield_now();
                }
            })
        };
        pages.remove();
        assert!(pages.store(0, GUILTY, 11).is_err());
        writer.join().unwrap();
        assert!(pages.load(0).is_err());
    });
}
