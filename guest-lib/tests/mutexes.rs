//! Mutexes that are released when their request fails.

mod common;
#[path = "common/compiled.rs"]
mod compiled;

use common::{domain, failure, null_write, success};
use compiled::Program;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use vmsrs::{Error, Kind, Mutex, Request, RunError};

/// Runs that part of the program.
fn in_c(mode: &str) {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| Program::compile("cc", &[], "tests/c/mutexes.c"));
    program.succeed(&[mode]);
}

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
        let _ = PAIR.with(|pair| {
            pair.0 = 1;
            null_write();
        });
    });
    assert_eq!((failure.kind, failure.defers_failed), (Kind::Memory, 0));
    PAIR.try_with(|pair| assert_eq!((pair.0, pair.1), (1, 1)))
        .unwrap();
    let panicked = domain.run(|_| {
        PAIR.with(|pair| {
            pair.0 = 2;
            panic!("in the middle");
        })
    });
    assert!(matches!(panicked, Err(RunError::<Error>::Failed(_))));
    PAIR.try_with(|pair| assert_eq!((pair.0, pair.1), (2, 2)))
        .unwrap();
}

#[test]
fn threads_in_requests_and_outside_take_turns() {
    static SHARED: Mutex<u64> = Mutex::new(0, |_| ());
    std::thread::scope(|scope| {
        for number in 0..4 {
            scope.spawn(move || {
                let domain = domain();
                for _ in 0..500 {
                    let add = || SHARED.with(|count| *count += 1).unwrap();
                    if number % 2 == 0 {
                        add();
                    } else {
                        success(domain, |_| add());
                    }
                }
            });
        }
    });
    assert_eq!(SHARED.with(|count| *count).unwrap(), 2000);
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
        let _ = BROKEN.with(|_| null_write());
    });
    assert_eq!(failure.defers_failed, 1);
    assert_eq!(REPAIRS.load(Ordering::SeqCst), 1);
    assert!(BROKEN.try_with(|_| ()).is_ok());
}

/// Each in the one before, until there are too many.
fn lock_all(mutexes: &'static [Mutex<u32>]) {
    let [first, rest @ ..] = mutexes else {
        return;
    };
    match first.with(|_| lock_all(rest)) {
        Err(Error::Limit(_)) if rest.is_empty() => null_write(),
        locked => locked.unwrap(),
    }
}

#[test]
fn a_thread_can_have_sixteen_of_them_in_requests() {
    static MANY: [Mutex<u32>; 17] = [const { Mutex::new(0, |_| ()) }; 17];
    let domain = domain();
    failure(domain, |_| {
        lock_all(&MANY);
    });
    for mutex in &MANY {
        assert!(mutex.try_with(|_| ()).is_ok());
    }
}

#[test]
fn a_member_of_a_failed_request_releases_its_own() {
    static OTHERS: Mutex<Pair> = Mutex::new(Pair(0, 0), put_right);
    let domain = domain();
    let failure = failure(domain, |request| {
        let pieces = vec![|_: &Request| {
            let _ = OTHERS.with(|pair| {
                pair.0 = 1;
                null_write();
            });
        }];
        let _ = request.fan_out(pieces);
    });
    assert_eq!(failure.kind, Kind::Memory);
    OTHERS
        .try_with(|pair| assert_eq!((pair.0, pair.1), (1, 1)))
        .unwrap();
}

#[test]
fn a_mutex_is_released_when_the_defer_or_the_repair_fails_that_has_locked_it() {
    in_c("defers");
    in_c("nested");
    in_c("left");
    in_c("member");
}

#[test]
fn repairs_that_lock_each_others_mutexes_and_fail_come_to_an_end() {
    in_c("cycles");
}

#[test]
fn a_defer_that_returns_with_a_mutex_locked_leaves_it_to_its_thread() {
    in_c("returns");
}

#[test]
fn mutexes_that_requests_have_left_locked_take_no_places() {
    in_c("places");
}

#[test]
fn a_repair_that_never_ends_is_cut_short() {
    in_c("endless");
}

/// Its end is an error, in the middle of a panic.
struct Wild;

impl Drop for Wild {
    fn drop(&mut self) {
        null_write();
    }
}

/// Has a panic that is cut short while frames are unwound.
fn cut_a_panic_short() {
    let failure = failure(domain(), |_| {
        let _wild = Wild;
        panic!("on purpose");
    });
    assert_eq!(failure.kind, Kind::Memory);
}

#[test]
fn a_panic_that_was_cut_short_has_no_later_value_put_right() {
    static LIST: Mutex<Vec<u32>> = Mutex::new(Vec::new(), Vec::clear);
    let domain = domain();
    for round in 0..3 {
        cut_a_panic_short();
        success(domain, |_| LIST.with(|list| list.push(round)).unwrap());
        success(domain, |_| {
            LIST.with(|list| assert_eq!(*list, [round])).unwrap();
        });
        // A panic in the middle is seen as ever.
        failure(domain, |_| {
            let _ = LIST.with(|_| panic!("in the middle"));
        });
        LIST.with(|list| assert!(list.is_empty())).unwrap();
    }
}

#[test]
fn a_panic_that_was_cut_short_keeps_no_domain_entered() {
    let (domain, shared) = (domain(), domain());
    for _ in 0..3 {
        cut_a_panic_short();
        success(domain, |request| {
            drop(request.enter(shared).unwrap());
            drop(request.enter(shared).unwrap());
        });
        assert!(!std::thread::panicking());
    }
}

/// Runs requests while its thread is panicking.
struct RunsRequests;

impl Drop for RunsRequests {
    fn drop(&mut self) {
        let shared = domain();
        cut_a_panic_short();
        success(domain(), |request| {
            drop(request.enter(shared).unwrap());
            drop(request.enter(shared).unwrap());
        });
        assert!(std::thread::panicking());
    }
}

#[test]
fn a_panic_of_the_server_in_which_requests_run_goes_on() {
    for _ in 0..3 {
        let outcome = std::panic::catch_unwind(|| {
            let _runs = RunsRequests;
            panic!("the server's");
        });
        assert!(outcome.is_err() && !std::thread::panicking());
    }
}
