//! Requests that run in steps, on any threads.

mod common;

use common::{domain, failure, null_write, success};
use std::hint::spin_loop;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use vmsrs::{Domain, Error, Kind, Options, RunError, Step, Task};

/// Whether a request holds the domain.
fn is_held(domain: &'static Domain) -> bool {
    let options = Options {
        lock_timeout: Some(Duration::from_millis(1)),
        ..Options::default()
    };
    thread::spawn(
        move || match domain.run_with(&options, |_| Ok::<_, ()>(())) {
            Ok(()) => false,
            Err(RunError::Refused(Error::LockTimeout { .. })) => true,
            other => panic!("{other:?}"),
        },
    )
    .join()
    .unwrap()
}

#[test]
fn task_steps_run_on_any_thread() {
    let (main, shared) = (domain(), domain());
    let mut task = Task::new(main, Options::default()).unwrap();
    let first = task.step(|request| {
        let block = NonNull::from(request.alloc(1u64).unwrap());
        request.set_root(Some(block)).unwrap();
        request.enter(shared).unwrap().keep();
        Step::<()>::Suspend
    });
    assert_eq!(first.unwrap(), Step::Suspend);
    // The thread can run other requests, and the task keeps its domains.
    success(domain(), |_| ());
    assert!(is_held(main) && is_held(shared));
    let mut task = thread::spawn(move || {
        let second = task.step(|request| {
            // SAFETY: the task's own number.
            unsafe { *request.root::<u64>().unwrap().as_mut() += 1 };
            shared.allocate(8, 8).unwrap();
            assert!(matches!(request.enter(shared), Err(Error::AlreadyHeld)));
            request.leave(shared).unwrap();
            Step::<()>::Suspend
        });
        assert_eq!(second.unwrap(), Step::Suspend);
        task
    })
    .join()
    .unwrap();
    assert!(is_held(main) && !is_held(shared));
    let last = task.step(|request| {
        // SAFETY: as above.
        Step::Done(unsafe { *request.root::<u64>().unwrap().as_ref() })
    });
    assert_eq!(last.unwrap(), Step::Done(2));
    assert!(task.is_over() && !is_held(main));
    let over = task.step(|_| Step::Done(()));
    assert!(matches!(over, Err(RunError::Refused(Error::Ended))));
}

#[test]
fn task_failing_in_step_releases_its_domains() {
    let (main, shared) = (domain(), domain());
    let mut task = Task::new(main, Options::default()).unwrap();
    task.step(|request| {
        request.enter(shared).unwrap().keep();
        Step::<()>::Suspend
    })
    .unwrap();
    let failed = task.step(|_| -> Step<()> { std::process::abort() });
    match failed {
        Err(RunError::Failed(failure)) => assert_eq!(failure.kind, Kind::Abort),
        other => panic!("{other:?}"),
    }
    assert!(task.is_over() && !is_held(main) && !is_held(shared));
}

#[test]
fn dropped_task_runs_defers_and_releases_domains() {
    let count = Arc::new(AtomicU32::new(0));
    for end in 0..4 {
        let main = domain();
        let mut task = Task::new(main, Options::default()).unwrap();
        task.step(|request| {
            let count = Arc::clone(&count);
            request
                .defer(move || {
                    count.fetch_add(1, Ordering::SeqCst);
                })
                .unwrap();
            Step::<()>::Suspend
        })
        .unwrap();
        match end {
            0 => drop(task),
            1 => assert_eq!(task.step(|_| Step::<()>::GiveUp).unwrap(), Step::GiveUp),
            2 => thread::spawn(move || drop(task)).join().unwrap(),
            _ => success(domain(), |_| drop(task)),
        }
        assert_eq!(count.load(Ordering::SeqCst), end + 1);
        assert!(!is_held(main));
    }
}

#[test]
fn task_is_freed_by_a_defer() {
    let (domain, other) = (domain(), domain());
    let mappings = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().count()
    };
    let before = mappings();
    for _ in 0..2000 {
        failure(domain, |request| {
            let task = Task::new(other, Options::default()).unwrap();
            request.defer(|| drop(task)).unwrap();
            null_write();
        });
    }
    let after = mappings();
    assert!(after < before + 1000, "{before} mappings, then {after}");
}

#[test]
fn missed_deadline_of_suspended_task_shows_at_next_step() {
    // On a busy machine the deadline may come in the first step: then there is another task, with twice the time.
    let mut deadline = Duration::from_millis(20);
    let mut task = loop {
        let options = Options {
            deadline: Some(deadline),
            ..Options::default()
        };
        let mut task = Task::new(domain(), options).unwrap();
        match task.step(|_| Step::<()>::Suspend) {
            Ok(Step::Suspend) => break task,
            Err(RunError::Failed(failure)) if failure.kind == Kind::Deadline => deadline *= 2,
            other => panic!("{other:?}"),
        }
    };
    // It began before it was suspended, so its deadline has passed after this.
    let start = Instant::now();
    while start.elapsed() <= deadline {
        spin_loop();
    }
    match task.step(|_| -> Step<()> { unreachable!("too late") }) {
        Err(RunError::Failed(failure)) => assert_eq!(failure.kind, Kind::Deadline),
        other => panic!("{other:?}"),
    }
    assert!(task.is_over());
}

#[test]
fn task_with_busy_domain_can_be_retried() {
    let main = domain();
    let options = Options {
        lock_timeout: Some(Duration::from_millis(1)),
        ..Options::default()
    };
    let mut task = Task::new(main, options).unwrap();
    let mut holder = Task::new(main, Options::default()).unwrap();
    holder.step(|_| Step::<()>::Suspend).unwrap();
    let busy = task.step(|_| Step::Done(()));
    assert!(matches!(
        busy,
        Err(RunError::Refused(Error::LockTimeout { .. }))
    ));
    drop(holder);
    assert_eq!(task.step(|_| Step::Done(5)).unwrap(), Step::Done(5));
}

#[test]
fn step_can_use_several_threads() {
    let mut task = Task::new(domain(), Options::default()).unwrap();
    task.step(|request| {
        let take = |request: &vmsrs::Request| *request.alloc(3u64).unwrap();
        assert_eq!(request.fan_out(vec![take, take]).unwrap(), [3, 3]);
        Step::<()>::Suspend
    })
    .unwrap();
    assert_eq!(task.step(|_| Step::Done(())).unwrap(), Step::Done(()));
}

#[test]
fn step_within_request_is_refused_and_can_run_later() {
    let mut task = Task::new(domain(), Options::default()).unwrap();
    success(domain(), |_| {
        let nested = task.step(|_| Step::Done(()));
        assert!(matches!(nested, Err(RunError::Refused(Error::Nested))));
    });
    assert_eq!(task.step(|_| Step::Done(())).unwrap(), Step::Done(()));
}
