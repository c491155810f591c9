//! Requests in steps, each on any thread.

mod common;

use common::{domain, success};
use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;
use vmsrs::{Domain, Error, Kind, Options, RunError, Step, Task};

/// Whether somebody holds the domain.
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
fn a_task_goes_on_with_each_step_on_another_thread() {
    let (main, shared) = (domain(), domain());
    let mut task = Task::new(main, Options::default()).unwrap();
    let first = task.step(|request| {
        let block = NonNull::from(request.alloc(1u64).unwrap());
        request.set_root(Some(block)).unwrap();
        request.enter(shared).unwrap().keep();
        Step::<()>::Suspend
    });
    assert_eq!(first.unwrap(), Step::Suspend);
    // The thread is free for other requests, and the domains are the task's.
    success(domain(), |_| ());
    assert!(is_held(main) && is_held(shared));
    let mut task = thread::spawn(move || {
        let second = task.step(|request| {
            // SAFETY: the task's own block.
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
fn a_task_that_fails_in_a_step_frees_its_domains() {
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
fn abandoned_task_runs_defers_and_frees_domains() {
    let count = Arc::new(AtomicU32::new(0));
    for way in 0..4 {
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
        match way {
            0 => drop(task),
            1 => assert_eq!(task.step(|_| Step::<()>::GiveUp).unwrap(), Step::GiveUp),
            2 => thread::spawn(move || drop(task)).join().unwrap(),
            _ => success(domain(), |_| drop(task)),
        }
        assert_eq!(count.load(Ordering::SeqCst), way + 1);
        assert!(!is_held(main));
    }
}

#[test]
fn overdue_suspended_task_fails_at_its_next_step() {
    let options = Options {
        deadline: Some(Duration::from_millis(20)),
        ..Options::default()
    };
    let mut task = Task::new(domain(), options).unwrap();
    let start = std::time::Instant::now();
    task.step(|_| Step::<()>::Suspend).unwrap();
    while start.elapsed() < Duration::from_millis(30) {
        black_box(());
    }
    match task.step(|_| -> Step<()> { unreachable!("too late") }) {
        Err(RunError::Failed(failure)) => assert_eq!(failure.kind, Kind::Deadline),
        other => panic!("{other:?}"),
    }
    assert!(task.is_over());
}

#[test]
fn a_task_whose_domain_is_busy_can_be_tried_again() {
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
fn a_step_may_use_several_threads() {
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
fn step_inside_a_request_is_refused_and_can_be_retried() {
    let mut task = Task::new(domain(), Options::default()).unwrap();
    success(domain(), |_| {
        let nested = task.step(|_| Step::Done(()));
        assert!(matches!(nested, Err(RunError::Refused(Error::Nested))));
    });
    assert_eq!(task.step(|_| Step::Done(())).unwrap(), Step::Done(()));
}
