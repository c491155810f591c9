//! A hot domain: requests inside, one after the other, while its page is sealed, taken back and made resident again
//! (`guest-kmod/resident.c`, `heat.c`, `hot.c`).

use loom::thread;
use std::sync::Arc;
use vmsrs_loom::check;
use vmsrs_loom::driver::Hot;

/// Another thread.
fn beside<T: 'static>(
    hot: &Arc<Hot>,
    work: impl FnOnce(&Hot) -> T + 'static,
) -> thread::JoinHandle<T> {
    let hot = hot.clone();
    thread::spawn(move || work(&hot))
}

/// A request that adds one. None fails where no stray write has changed a word.
fn count(hot: &Hot, tag: u64, learn: bool) {
    let member = hot.begin(tag).unwrap();
    hot.increment(&member);
    assert!(hot.commit(&member, learn).unwrap());
    hot.end(&member);
}

/// A request that adds one and fails.
fn fail(hot: &Hot, tag: u64) {
    let member = hot.begin(tag).unwrap();
    hot.increment(&member);
    hot.fail(&member);
}

#[test]
fn two_requests_count_while_the_page_is_sealed() {
    check(3, || {
        let hot = Arc::new(Hot::default());
        let second = beside(&hot, |hot| count(hot, 6, false));
        let host = beside(&hot, Hot::seal);
        count(&hot, 5, false);
        second.join().unwrap();
        let sealed = host.join().unwrap();
        assert!(sealed.is_none_or(|sealed| sealed == 1 || sealed == 2));
        assert_eq!(hot.state(), (2, true));
        let last = hot.seal();
        assert_eq!(last.or(sealed), Some(2));
    });
}

#[test]
fn a_domain_whose_key_is_taken_loses_no_commit() {
    check(3, || {
        let hot = Arc::new(Hot::default());
        let taker = beside(&hot, Hot::free_key);
        let second = beside(&hot, |hot| count(hot, 6, true));
        count(&hot, 5, true);
        second.join().unwrap();
        taker.join().unwrap();
        assert_eq!(hot.state().0, 2);
    });
}

#[test]
fn what_a_failed_request_has_written_is_gone_and_nothing_else() {
    check(3, || {
        let hot = Arc::new(Hot::default());
        let second = beside(&hot, |hot| fail(hot, 6));
        let host = beside(&hot, Hot::seal);
        count(&hot, 5, true);
        second.join().unwrap();
        let sealed = host.join().unwrap();
        assert!(sealed.is_none_or(|sealed| sealed == 1));
        assert_eq!(hot.state().0, 1);
    });
}

#[test]
fn a_request_that_leaves_a_hot_domain_goes_on_with_ordinary_pages() {
    check(3, || {
        let hot = Arc::new(Hot::default());
        let second = beside(&hot, |hot| count(hot, 6, true));
        let host = beside(&hot, Hot::seal);
        let member = hot.begin(5).unwrap();
        hot.increment(&member);
        hot.cool(&member).unwrap();
        hot.increment(&member);
        assert!(hot.commit(&member, true).unwrap());
        hot.end(&member);
        second.join().unwrap();
        host.join().unwrap();
        assert_eq!(hot.state().0, 3);
    });
}

#[test]
fn a_reader_finds_what_was_committed() {
    check(3, || {
        let hot = Arc::new(Hot::default());
        let taker = beside(&hot, Hot::free_key);
        let reader = beside(&hot, |hot| {
            let (first, second) = (hot.load(), hot.load());
            assert!(first <= second && second <= 1, "{first}, then {second}");
        });
        count(&hot, 5, true);
        reader.join().unwrap();
        taker.join().unwrap();
        assert_eq!(hot.state().0, 1);
    });
}

#[test]
fn a_sealed_version_is_shown_by_nobody_when_its_frame_is_free() {
    check(3, || {
        let hot = Arc::new(Hot::default());
        hot.free_key();
        count(&hot, 5, false);
        let reader = beside(&hot, |hot| assert!(hot.load() >= 1));
        let host = beside(&hot, Hot::seal);
        count(&hot, 6, true);
        reader.join().unwrap();
        host.join().unwrap();
        assert_eq!(hot.state(), (2, true));
    });
}

#[test]
fn no_two_requests_commit_though_a_stray_write_has_cleared_the_lock_word() {
    check(3, || {
        let hot = Arc::new(Hot::default());
        let first = hot.begin(5).unwrap();
        hot.increment(&first);
        let second = beside(&hot, |hot| {
            hot.clear_word();
            hot.begin(6).is_ok_and(|second| {
                hot.increment(&second);
                hot.commit(&second, false).is_ok()
            })
        });
        let committed = hot.commit(&first, false).is_ok();
        let second = second.join().unwrap();
        assert_eq!(hot.state().0, u64::from(committed) + u64::from(second));
    });
}
