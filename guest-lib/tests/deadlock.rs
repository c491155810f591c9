//! Requests that hold several domains, taken in any order.

mod common;

use common::{domain, success};
use std::sync::{Arc, Barrier};
use std::thread;
use vmsrs::{Error, Request, RunError};

#[test]
fn deadlock_of_two_is_reported_and_both_can_finish() {
    for _ in 0..20 {
        let (one, two) = (domain(), domain());
        let both = Arc::new(Barrier::new(2));
        let threads = [(one, two), (two, one)].map(|(first, second)| {
            let both = Arc::clone(&both);
            thread::spawn(move || {
                let mut met = false;
                let mut deadlocks = 0;
                loop {
                    let outcome = first.run(|request| {
                        if !met {
                            both.wait();
                            met = true;
                        }
                        request.enter(second).map(|entered| {
                            entered.keep();
                        })
                    });
                    match outcome {
                        Ok(()) => return deadlocks,
                        Err(RunError::GivenUp(Error::WouldDeadlock)) => deadlocks += 1,
                        other => panic!("{other:?}"),
                    }
                }
            })
        });
        let deadlocks: u32 = threads.map(|thread| thread.join().unwrap()).iter().sum();
        assert!(deadlocks >= 1, "both were waiting for each other");
    }
}

#[test]
fn deadlock_of_five_is_reported_once() {
    let domains: Vec<_> = (0..5).map(|_| domain()).collect();
    let all = Arc::new(Barrier::new(5));
    let threads: Vec<_> = (0..5)
        .map(|number| {
            let (first, second) = (domains[number], domains[(number + 1) % 5]);
            let all = Arc::clone(&all);
            thread::spawn(move || {
                first.run(|request| {
                    all.wait();
                    request.enter(second).map(|entered| {
                        entered.keep();
                    })
                })
            })
        })
        .collect();
    let deadlocks = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .filter(|outcome| match outcome {
            Ok(()) => false,
            Err(RunError::GivenUp(Error::WouldDeadlock)) => true,
            other => panic!("{other:?}"),
        })
        .count();
    assert_eq!(deadlocks, 1, "the others must get their locks");
}

#[test]
fn request_told_of_deadlock_keeps_its_domains() {
    let (main, one, two) = (domain(), domain(), domain());
    let both = Arc::new(Barrier::new(2));
    let theirs = Arc::clone(&both);
    let other = thread::spawn(move || {
        two.run(|request| {
            theirs.wait();
            request.enter(one).map(|entered| {
                entered.keep();
            })
        })
    });
    success(main, |request| {
        request.enter(one).unwrap().keep();
        both.wait();
        match request.enter(two) {
            Err(Error::WouldDeadlock) => {
                one.allocate(8, 8).unwrap();
                request.leave(one).unwrap();
                request.enter(two).unwrap().leave().unwrap();
            }
            // The other request was told instead.
            Ok(entered) => entered.leave().unwrap(),
            Err(error) => panic!("{error}"),
        }
    });
    let outcome = other.join().unwrap();
    assert!(
        matches!(
            outcome,
            Ok(()) | Err(RunError::GivenUp(Error::WouldDeadlock))
        ),
        "{outcome:?}"
    );
}

#[test]
fn enter_all_locks_each_domain_once_in_order() {
    let (main, one, two) = (domain(), domain(), domain());
    success(main, |request| {
        request.enter_all(&[two, one, two, main]).unwrap();
        for held in [one, two] {
            assert!(matches!(request.enter(held), Err(Error::AlreadyHeld)));
        }
        request.leave(one).unwrap();
        request.leave(two).unwrap();
    });
    let threads: Vec<_> = (0..8)
        .map(|number| {
            thread::spawn(move || {
                let own = domain();
                for _ in 0..200 {
                    success(own, |request: &Request| {
                        let order = if number % 2 == 0 {
                            [one, two]
                        } else {
                            [two, one]
                        };
                        request.enter_all(&order).unwrap();
                    });
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn failed_enter_all_releases_what_it_locked() {
    let (main, one, two) = (domain(), domain(), domain());
    let both = Arc::new(Barrier::new(2));
    let theirs = Arc::clone(&both);
    let other = thread::spawn(move || {
        success(two, |_| {
            theirs.wait();
            theirs.wait();
        });
    });
    both.wait();
    let options = vmsrs::Options {
        lock_timeout: Some(std::time::Duration::from_millis(5)),
        ..vmsrs::Options::default()
    };
    let outcome = main.run_with(&options, |request| {
        let refused = request.enter_all(&[one, two]);
        assert!(matches!(refused, Err(Error::LockTimeout { .. })));
        assert!(matches!(one.allocate(8, 8), Err(Error::NotHeld)));
        Ok::<_, ()>(())
    });
    assert!(outcome.is_ok());
    both.wait();
    other.join().unwrap();
}
