//! Mutexes that are released when their request fails.

mod common;

use common::{domain, failure, null_write, success};
use std::sync::atomic::{AtomicU32, Ordering};
use vmsrs::{Error, Kind, Mutex, Request, RunError};

/// Two numbers that are the same unless somebody is at work on them.
struct Pair(u64, u64);

fn put_right(pair: &mut Pair) {
    pair.1 = pair.0;
}

#[test]
fn a_mutex_is_released_and_its_value_put_right_when_its_request_fails() {
    static PAIR: Mutex<Pair> = Mutex::new(Pair(0, 0), put_right);
    let domain = domain();
    let failure = failure(domain, |_| {
        let mut pair = PAIR.lock().unwrap();
        pair.0 = 1;
        null_write();
    });
    assert_eq!((failure.kind, failure.defers_failed), (Kind::Memory, 0));
    let pair = PAIR.try_lock().unwrap();
    assert_eq!((pair.0, pair.1), (1, 1));
    drop(pair);
    // By a panic, whose guard is dropped, and by giving up, whose guard is forgotten.
    let panicked = domain.run(|_| {
        let mut pair = PAIR.lock()?;
        pair.0 = 2;
        panic!("in the middle");
        #[expect(unreachable_code, reason = "for the type")]
        Ok::<_, Error>(())
    });
    assert!(matches!(panicked, Err(RunError::Failed(_))));
    let given_up = domain.run(|_| {
        let mut pair = PAIR.lock()?;
        assert_eq!((pair.0, pair.1), (2, 2));
        pair.0 = 3;
        std::mem::forget(pair);
        Err::<(), _>(Error::NotHeld)
    });
    assert!(matches!(given_up, Err(RunError::GivenUp(Error::NotHeld))));
    let pair = PAIR.try_lock().unwrap();
    assert_eq!((pair.0, pair.1), (3, 3));
}

#[test]
fn a_mutex_stays_locked_where_its_request_succeeds_or_has_not_locked_it() {
    static MINE: Mutex<u32> = Mutex::new(1, |value| *value = 100);
    let domain = domain();
    success(domain, |_| std::mem::forget(MINE.lock().unwrap()));
    assert!(matches!(MINE.lock(), Err(Error::AlreadyHeld)));
    let there = std::thread::spawn(|| matches!(MINE.try_lock(), Err(Error::LockTimeout { .. })));
    assert!(there.join().unwrap());
    // The next request has nothing to do with it.
    failure(domain, |_| null_write());
    assert!(matches!(MINE.lock(), Err(Error::AlreadyHeld)));
}

#[test]
fn threads_in_requests_and_outside_take_turns() {
    static SHARED: Mutex<u64> = Mutex::new(0, |_| ());
    std::thread::scope(|scope| {
        for number in 0..4 {
            scope.spawn(move || {
                let domain = domain();
                for _ in 0..500 {
                    let add = || *SHARED.lock().unwrap() += 1;
                    if number % 2 == 0 {
                        add();
                    } else {
                        success(domain, |_| add());
                    }
                }
            });
        }
    });
    assert_eq!(*SHARED.lock().unwrap(), 2000);
}

#[test]
fn a_repair_that_fails_costs_nothing_but_itself() {
    static REPAIRS: AtomicU32 = AtomicU32::new(0);
    static BROKEN: Mutex<u32> = Mutex::new(0, |_| {
        REPAIRS.fetch_add(1, Ordering::SeqCst);
        null_write();
    });
    let domain = domain();
    let failure = failure(domain, |_| {
        std::mem::forget(BROKEN.lock().unwrap());
        null_write();
    });
    assert_eq!(failure.defers_failed, 1);
    assert_eq!(REPAIRS.load(Ordering::SeqCst), 1);
    assert!(BROKEN.try_lock().is_ok());
}

#[test]
fn a_thread_can_have_sixteen_of_them_in_requests() {
    static MANY: [Mutex<u32>; 17] = [const { Mutex::new(0, |_| ()) }; 17];
    let domain = domain();
    failure(domain, |_| {
        for mutex in &MANY[..16] {
            std::mem::forget(mutex.lock().unwrap());
        }
        assert!(matches!(MANY[16].lock(), Err(Error::Limit(_))));
        null_write();
    });
    for mutex in &MANY {
        assert!(mutex.try_lock().is_ok());
    }
}

#[test]
fn a_member_of_a_failed_request_releases_its_own() {
    static OTHERS: Mutex<Pair> = Mutex::new(Pair(0, 0), put_right);
    let domain = domain();
    let failure = failure(domain, |request| {
        let pieces = vec![|_: &Request| {
            let mut pair = OTHERS.lock().unwrap();
            pair.0 = 1;
            null_write();
        }];
        let _ = request.fan_out(pieces);
    });
    assert_eq!(failure.kind, Kind::Memory);
    let pair = OTHERS.try_lock().unwrap();
    assert_eq!((pair.0, pair.1), (1, 1));
}
