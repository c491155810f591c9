//! The table of threads (`guest-kmod/thread.c`, `reap.c`) and the pages of lock words (`lock.c`).

use loom::thread;
use std::sync::Arc;
use vmsrs_loom::check;
use vmsrs_loom::driver::{LockPage, Registration};

#[test]
fn a_registration_is_ended_once_and_freed_when_unused() {
    check(3, || {
        let registration = Arc::new(Registration::default());
        let reaper = {
            let registration = registration.clone();
            thread::spawn(move || registration.reap())
        };
        let watch = {
            let registration = registration.clone();
            thread::spawn(move || registration.reap())
        };
        // The thread itself.
        registration.fault();
        registration.exit();
        reaper.join().unwrap();
        watch.join().unwrap();
        assert!(!registration.fault());
        assert_eq!(registration.ends(), 1);
        assert!(registration.is_freed());
    });
}

#[test]
fn threads_share_one_zeroed_page_of_lock_words() {
    check(4, || {
        let words = Arc::new(LockPage::default());
        let other = {
            let words = words.clone();
            thread::spawn(move || {
                let page = words.get(1);
                assert_eq!(words.read(page), Some(0));
                page
            })
        };
        let fault = {
            let words = words.clone();
            thread::spawn(move || {
                if let Some(page) = words.peek() {
                    assert_eq!(words.read(page), Some(0));
                }
            })
        };
        let page = words.get(0);
        assert_eq!(words.read(page), Some(0));
        assert_eq!(other.join().unwrap(), page);
        fault.join().unwrap();
    });
}
