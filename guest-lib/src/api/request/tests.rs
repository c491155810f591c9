//! Requests with a backend whose behaviour each test defines.

use super::*;
use crate::error::RunError;
use crate::mock::{MockBackend, list_written};
use crate::shared::control::Control;
use crate::{Audit, Options};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

type Piece<'a> = Box<dyn FnOnce(&Request) + Send + 'a>;

/// A request that holds the domain until the sender is dropped.
fn hold(domain: &'static Domain) -> (mpsc::Sender<()>, std::thread::JoinHandle<()>) {
    let (held, is_held) = mpsc::channel();
    let (free, is_free) = mpsc::channel::<()>();
    let holder = std::thread::spawn(move || {
        let outcome = domain.run(|_| {
            held.send(()).unwrap();
            let _ = is_free.recv();
            Ok::<_, Error>(())
        });
        outcome.unwrap();
    });
    is_held.recv().unwrap();
    (free, holder)
}

/// Fails the calling thread's request as another of its threads would, in the middle of a call.
fn fail_from_outside() {
    let thread = thread::current().unwrap();
    // SAFETY: the thread is registered.
    unsafe { Control::new(thread.control()) }.set_failed(thread.tag());
    // SAFETY: the library's own signal.
    unsafe { libc::raise(crate::os::signals::interrupt()) };
}

#[test]
fn failing_inside_commit_keeps_what_was_committed() {
    let app = MockBackend::app("fails in a commit", |hooks| {
        hooks.commit = Box::new(|_, _| {
            fail_from_outside();
            Ok(())
        });
    });
    let domain = app.domain("one").unwrap();
    let undone = Arc::new(AtomicU32::new(0));
    let undo = Arc::clone(&undone);
    let outcome: Result<(), RunError<Error>> = domain.run(|request| {
        request.defer(move || {
            undo.fetch_add(1, Ordering::SeqCst);
        })?;
        thread::current().unwrap().state().note_drafts();
        request.commit(true)?;
        unreachable!("the request has failed")
    });
    assert!(matches!(outcome, Err(RunError::Failed(_))), "{outcome:?}");
    assert_eq!(undone.load(Ordering::SeqCst), 0);
}

#[test]
fn failure_after_commit_undoes_only_later_defers() {
    let app = MockBackend::app("fails after a commit", |_| ());
    let domain = app.domain("one").unwrap();
    let undone = Arc::new(Mutex::new(Vec::new()));
    let undo = |number| {
        let undone = Arc::clone(&undone);
        move || undone.lock().unwrap().push(number)
    };
    let outcome: Result<(), RunError<Error>> = domain.run(|request| {
        request.defer(undo(1))?;
        request.commit(false)?;
        request.defer(undo(2))?;
        request.defer(undo(3))?;
        request.fail("this request fails")
    });
    assert!(matches!(outcome, Err(RunError::Failed(_))), "{outcome:?}");
    assert_eq!(*undone.lock().unwrap(), [3, 2]);
}

/// Owned by a defer; runs the function when it is dropped.
struct Dropped(fn());

impl Drop for Dropped {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn dropping_a_refused_defer_may_use_the_library() {
    let app = MockBackend::app("too many defers", |_| ());
    let domain = app.domain("one").unwrap();
    domain
        .run(|request| {
            for _ in 0..crate::state::deferred::DEFERS_MAX {
                request.defer(|| ())?;
            }
            let broken = Dropped(|| {
                let thread = thread::current().unwrap();
                Request::of(thread).alloc(1u8).map(drop).unwrap();
            });
            let refused = request.defer(move || drop(broken));
            assert!(matches!(refused, Err(Error::Limit(_))), "{refused:?}");
            Ok::<_, Error>(())
        })
        .unwrap();
}

#[test]
fn error_in_dropping_a_forgotten_defer_is_contained() {
    let app = MockBackend::app("forgotten defers", |_| ());
    let domain = app.domain("one").unwrap();
    let errors: [fn(); 2] = [
        || panic!("dropped"),
        // SAFETY: it is not; that is the test.
        || unsafe { std::hint::black_box(ptr::null_mut::<u32>()).write_volatile(1) },
    ];
    for error in errors {
        let dropped = Arc::new(());
        let (broken, whole) = (Dropped(error), Arc::clone(&dropped));
        let outcome = domain.run(|request| {
            request.defer(move || drop(whole))?;
            request.defer(move || drop(broken))?;
            Ok::<_, Error>(7)
        });
        assert_eq!(outcome.unwrap(), 7);
        assert_eq!(Arc::strong_count(&dropped), 1);
        domain.run(|request| request.alloc(1u8).map(drop)).unwrap();
    }
}

#[test]
fn failed_enter_all_leaves_only_its_own_domains() {
    for refusal in [libc::ETIMEDOUT, libc::EDEADLK] {
        let (waits, is_waiting) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        let may_go_on = Mutex::new(may_go_on);
        let committed = Arc::new(Mutex::new(Vec::new()));
        let commits = Arc::clone(&committed);
        let app = MockBackend::app(&format!("enter all, refused with {refusal}"), |hooks| {
            hooks.lock_wait = Box::new(move |_, _| {
                waits.send(()).unwrap();
                may_go_on.lock().unwrap().recv().unwrap();
                Some(Err(std::io::Error::from_raw_os_error(refusal)))
            });
            hooks.commit = Box::new(move |_, domain| {
                commits.lock().unwrap().push(domain);
                Ok(())
            });
        });
        let [main, x, y, z] = ["main", "x", "y", "z"].map(|key| app.domain(key).unwrap());
        let (free, holder) = hold(y);
        let (refused, is_refused) = mpsc::channel();
        main.run(|request| {
            let enters_all: Piece<'_> = Box::new(move |request| {
                let outcome = request.enter_all(&[x, y]);
                assert!(
                    matches!(
                        outcome,
                        Err(Error::LockTimeout { .. } | Error::WouldDeadlock)
                    ),
                    "{outcome:?}"
                );
                refused.send(()).unwrap();
            });
            let committed = Arc::clone(&committed);
            let is_busy: Piece<'_> = Box::new(move |request| {
                is_waiting.recv().unwrap();
                request.enter(z).unwrap().keep();
                go_on.send(()).unwrap();
                is_refused.recv().unwrap();
                let state = thread::current().unwrap().state();
                let held = thread::current()
                    .unwrap()
                    .exclusive(|| [x, y, z].map(|domain| state.holds(domain)));
                assert_eq!(held, [false, false, true]);
                assert_eq!(z.holder(), state.tag());
                assert_eq!(x.holder(), 0);
                assert!(!committed.lock().unwrap().contains(&z.number()));
            });
            request.fan_out(vec![enters_all, is_busy]).map(drop)
        })
        .unwrap();
        drop(free);
        holder.join().unwrap();
    }
}

#[test]
fn enter_all_waits_for_domain_another_member_awaits() {
    let (waits, is_waiting) = mpsc::channel();
    let app = MockBackend::app("enter all, waited for by another", |hooks| {
        hooks.lock_wait = Box::new(move |_, _| {
            waits.send(()).unwrap();
            None
        });
    });
    let [main, y] = ["main", "y"].map(|key| app.domain(key).unwrap());
    let (free, holder) = hold(y);
    let has_returned = AtomicBool::new(false);
    let has_returned = &has_returned;
    main.run(|request| {
        let state = thread::current().unwrap().state();
        let enters: Piece<'_> = Box::new(move |request| {
            request.enter(y).unwrap().keep();
        });
        let enters_all: Piece<'_> = Box::new(move |request| {
            is_waiting.recv().unwrap();
            let outcome = request.enter_all(&[y]);
            let holder = y.holder();
            has_returned.store(true, Ordering::SeqCst);
            outcome.unwrap();
            assert_eq!(holder, state.tag());
        });
        let lets_go: Piece<'_> = Box::new(move |_| {
            while state.held_waiters() == 0 && !has_returned.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            drop(free);
        });
        request.fan_out(vec![enters, enters_all, lets_go]).map(drop)
    })
    .unwrap();
    holder.join().unwrap();
}

#[test]
fn heaps_do_not_change_during_commit_or_leave() {
    const MEMBERS: usize = 3;
    const COMMITS: u32 = 50;
    static DOMAINS: std::sync::OnceLock<[&Domain; 2]> = std::sync::OnceLock::new();
    let (commits, changed) = (
        Arc::new(AtomicU32::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let (count, saw) = (Arc::clone(&commits), Arc::clone(&changed));
    let app = MockBackend::app("commit with members", |hooks| {
        hooks.commit = Box::new(move |_, _| {
            let bookkeeping = || DOMAINS.get().unwrap().map(Domain::bookkeeping);
            let before = bookkeeping();
            for _ in 0..20 {
                std::thread::yield_now();
            }
            if bookkeeping() != before {
                saw.store(true, Ordering::SeqCst);
            }
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
    });
    let [main, shared] = ["main", "shared"].map(|key| app.domain(key).unwrap());
    DOMAINS.set([main, shared]).unwrap();
    let over = AtomicBool::new(false);
    let over = &over;
    main.run(|request| {
        let busy = (0..MEMBERS).map(|_| {
            Box::new(move |_: &Request| {
                while !over.load(Ordering::SeqCst) {
                    for domain in [main, shared] {
                        match domain.allocate(100, 16) {
                            // SAFETY: live, and used no more. Left meanwhile, it stays.
                            Ok(block) => drop(unsafe { domain.deallocate(block) }),
                            Err(error) => assert!(matches!(error, Error::NotHeld)),
                        }
                    }
                }
            }) as Box<dyn FnOnce(&Request) + Send>
        });
        let commits = |request: &Request| {
            for round in 0..COMMITS {
                if round % 2 == 0 {
                    request.commit(false).unwrap();
                } else {
                    request.enter(shared).unwrap().leave().unwrap();
                }
            }
            over.store(true, Ordering::SeqCst);
        };
        let mut pieces: Vec<_> = busy.collect();
        pieces.push(Box::new(commits));
        request.fan_out(pieces).map(drop)
    })
    .unwrap();
    assert_eq!(commits.load(Ordering::SeqCst), COMMITS + 1);
    assert!(!changed.load(Ordering::SeqCst), "changed while committed");
    for domain in [main, shared] {
        let whole = Options {
            audit: Audit::Whole,
            ..Options::default()
        };
        domain
            .run_with(&whole, |request| request.alloc(1u8).map(drop))
            .unwrap();
    }
}

#[test]
fn only_what_was_written_is_committed() {
    let commits = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&commits);
    let app = MockBackend::app("what was written", |hooks| {
        hooks.commit = Box::new(move |_, _| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
    });
    let domain = app.domain("one").unwrap();
    let run = |write: bool| {
        let outcome = domain.run(|_| {
            if write {
                list_written(&[0]);
            }
            Ok::<_, Error>(())
        });
        outcome.unwrap();
        commits.swap(0, Ordering::SeqCst)
    };
    assert_eq!([false, true, false].map(run), [0, 1, 0]);
}

#[test]
fn deadline_holds_until_the_last_commit() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let deadlines = Arc::clone(&seen);
    let app = MockBackend::app("deadline of commits", |hooks| {
        hooks.commit = Box::new(move |_, _| {
            let control = thread::current().unwrap().control().as_ptr();
            // SAFETY: the calling thread's.
            let deadline = unsafe { (&raw mut (*control).deadline_ns).read_volatile() };
            deadlines.lock().unwrap().push(deadline != 0);
            Ok(())
        });
    });
    let domain = app.domain("one").unwrap();
    let options = Options {
        deadline: Some(Duration::from_secs(60)),
        ..Options::default()
    };
    domain
        .run_with(&options, |request| {
            list_written(&[0]);
            request.commit(false)?;
            list_written(&[0]);
            Ok::<_, Error>(())
        })
        .unwrap();
    assert_eq!(*seen.lock().unwrap(), [true, false]);
}

#[test]
fn owned_descriptor_is_closed_if_the_request_does_not_succeed() {
    let app = MockBackend::app("owned descriptors", |_| ());
    let domain = app.domain("one").unwrap();
    // SAFETY: makes descriptors.
    let open = || unsafe { libc::dup(libc::STDERR_FILENO) };
    let is_open = |fd| file::identity(fd).is_some();
    for (fails, commits) in [(false, true), (true, false), (false, false)] {
        let fd = open();
        let outcome = domain.run(|request| {
            request.own_fd(fd)?;
            if fails {
                request.fail("on purpose");
            }
            if commits { Ok(()) } else { Err(Error::NotHeld) }
        });
        assert_eq!((outcome.is_ok(), is_open(fd)), (commits, commits));
        // SAFETY: it is this test's.
        unsafe { libc::close(fd) };
    }
    // One that the request has closed, and whose number is another file's by then.
    let (fd, other) = (open(), tempfile::NamedTempFile::new().unwrap());
    let outcome: Result<(), RunError<Error>> = domain.run(|request| {
        request.own_fd(fd)?;
        // SAFETY: the descriptor is this test's.
        unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(other.as_file()), fd) };
        request.fail("on purpose")
    });
    assert!(outcome.is_err() && is_open(fd));
    // SAFETY: it is this test's.
    unsafe { libc::close(fd) };
    let closed = domain.run(|request| request.own_fd(fd));
    assert!(matches!(closed, Err(RunError::GivenUp(Error::Argument(_)))));
}

#[test]
fn descriptor_that_was_taken_back_is_left_alone() {
    let app = MockBackend::app("disowned descriptors", |_| ());
    let domain = app.domain("one").unwrap();
    // SAFETY: makes a descriptor of an anonymous file, of which each looks like all others.
    let open = || unsafe { libc::eventfd(0, 0) };
    let (one, two) = (open(), open());
    let outcome: Result<(), RunError<Error>> = domain.run(|request| {
        request.own_fd(one)?;
        request.own_fd(two)?;
        assert!(request.disown_fd(one)?);
        assert!(!request.disown_fd(one)?);
        // Another thread gets the number.
        // SAFETY: the descriptor is this test's.
        unsafe { libc::dup2(two, one) };
        request.fail("on purpose")
    });
    assert!(outcome.is_err());
    assert!(file::identity(one).is_some() && file::identity(two).is_none());
    // SAFETY: it is this test's.
    unsafe { libc::close(one) };
}
