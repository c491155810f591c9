//! Several threads work for one request, which succeeds or fails as a whole.

mod common;

use common::{NULL_WRITE_ADDRESS, domain, failure, null_write, success};
use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};
use vmsrs::{Domain, Error, JoinError, Kind, Request, RunError, Ticket};

type Work = Box<dyn FnOnce(&Request) + Send>;

/// A thread that joins a request with the ticket that it is sent, and returns the outcome.
fn member(
    work: impl FnOnce(&Request) + Send + 'static,
) -> (
    mpsc::Sender<Ticket>,
    thread::JoinHandle<Result<(), JoinError>>,
) {
    let (send, receive) = mpsc::channel::<Ticket>();
    let thread = thread::spawn(move || receive.recv().unwrap().join(work));
    (send, thread)
}

#[test]
fn fan_out_returns_result_of_every_piece() {
    let domain = domain();
    let sum = success(domain, |request| {
        let numbers = [1u64, 2, 3, 4];
        let pieces: Vec<_> = numbers
            .iter()
            .map(|&number| move |request: &Request| *request.alloc(number * 10).unwrap())
            .collect();
        request.fan_out(pieces).unwrap().into_iter().sum::<u64>()
    });
    assert_eq!(sum, 100);
}

#[test]
fn failed_fan_outs_leave_no_stacks_of_threads_behind() {
    let domain = domain();
    let fail = || {
        failure(domain, |request| {
            request
                .fan_out(vec![|_: &Request| null_write(); 2])
                .unwrap();
        })
    };
    // Two for each stack. Other tests have threads, too, and some are about to end.
    let mappings = || {
        std::fs::read_to_string("/proc/self/maps")
            .unwrap()
            .lines()
            .count()
    };
    fail();
    let before = mappings();
    for _ in 0..4000 {
        fail();
    }
    let after = mappings();
    assert!(after < before + 2000, "{before} mappings, then {after}");
}

#[test]
fn many_members_share_one_heap() {
    let domain = domain();
    success(domain, |request| {
        let pieces: Vec<_> = (0..16u64)
            .map(|seed| {
                move |request: &Request| {
                    let mut blocks = Vec::new();
                    for round in 0..300 {
                        let block = NonNull::from(request.alloc([seed, round]).unwrap());
                        blocks.push(block);
                        if round % 3 == 0 {
                            let block = blocks.swap_remove(blocks.len() / 2);
                            // SAFETY: allocated, and not used afterwards.
                            unsafe {
                                assert_eq!(block.as_ref()[0], seed);
                                request.free(block).unwrap();
                            }
                        }
                    }
                    for block in blocks {
                        // SAFETY: allocated.
                        assert_eq!(unsafe { block.as_ref()[0] }, seed);
                    }
                }
            })
            .collect();
        request.fan_out(pieces).unwrap();
    });
    // Its audit checks what is left.
    success(domain, |_| ());
}

#[test]
fn failure_of_member_ends_all_with_same_incident() {
    let domain = domain();
    let ready = Arc::new(Barrier::new(3));
    let theirs = Arc::clone(&ready);
    let (to_busy, busy) = member(move |_| {
        theirs.wait();
        loop {
            black_box(());
        }
    });
    let theirs = Arc::clone(&ready);
    let (to_failing, failing) = member(move |_| {
        theirs.wait();
        null_write();
    });
    let owners = failure(domain, |request| {
        let ticket = request.ticket().unwrap();
        to_busy.send(ticket).unwrap();
        to_failing.send(ticket).unwrap();
        ready.wait();
        loop {
            black_box(());
        }
    });
    assert_eq!(
        (owners.kind, owners.address),
        (Kind::Memory, NULL_WRITE_ADDRESS)
    );
    for thread in [busy, failing] {
        match thread.join().unwrap() {
            Err(RunError::Failed(failure)) => {
                assert_eq!(failure.incident, owners.incident);
                assert_eq!(failure.kind, Kind::Memory);
            }
            other => panic!("{other:?}"),
        }
    }
    success(domain, |_| ());
}

#[test]
fn members_blocked_in_read_futex_or_lock_are_ended() {
    let (main, other) = (domain(), domain());
    let (hold, is_held) = mpsc::channel();
    let (release, may_release) = mpsc::channel::<()>();
    let holder = thread::spawn(move || {
        success(other, |_| {
            hold.send(()).unwrap();
            may_release.recv().unwrap();
        });
    });
    is_held.recv().unwrap();
    let ready = Arc::new(Barrier::new(4));
    let mut pipe = [0; 2];
    // SAFETY: fills two descriptors.
    assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
    let work: [Work; 3] = [
        Box::new(move |_| {
            let mut byte = 0u8;
            // SAFETY: reads into the byte; nobody writes to the pipe.
            unsafe { libc::read(pipe[0], (&raw mut byte).cast(), 1) };
            unreachable!("nobody writes to the pipe");
        }),
        Box::new(|_| {
            let word = AtomicU32::new(0);
            // SAFETY: waits on the word; nobody wakes the thread.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    word.as_ptr(),
                    libc::FUTEX_WAIT,
                    0,
                    std::ptr::null::<libc::timespec>(),
                )
            };
            unreachable!("nobody wakes the thread");
        }),
        Box::new(move |request| {
            request.enter(other).unwrap().keep();
            unreachable!("the lock is not released");
        }),
    ];
    let members = work.map(|work| {
        let ready = Arc::clone(&ready);
        member(move |request| {
            ready.wait();
            work(request);
        })
    });
    let failure = failure(main, |request| {
        for (send, _) in &members {
            send.send(request.ticket().unwrap()).unwrap();
        }
        ready.wait();
        null_write();
    });
    for (_, thread) in members {
        match thread.join().unwrap() {
            Err(RunError::Failed(theirs)) => assert_eq!(theirs.incident, failure.incident),
            other => panic!("{other:?}"),
        }
    }
    release.send(()).unwrap();
    holder.join().unwrap();
    for domain in [main, other] {
        success(domain, |_| ());
    }
}

#[test]
fn owner_waits_for_members_before_commit() {
    let domain = domain();
    let (finish, may_finish) = mpsc::channel::<()>();
    let done = Arc::new(AtomicBool::new(false));
    let theirs = Arc::clone(&done);
    let (inside, is_inside) = mpsc::channel();
    let (to_member, thread) = member(move |_| {
        inside.send(()).unwrap();
        may_finish.recv().unwrap();
        theirs.store(true, Ordering::SeqCst);
    });
    success(domain, |request| {
        to_member.send(request.ticket().unwrap()).unwrap();
        is_inside.recv().unwrap();
        finish.send(()).unwrap();
    });
    assert!(done.load(Ordering::SeqCst));
    thread.join().unwrap().unwrap();
}

#[test]
fn domain_entered_by_member_is_usable_by_others() {
    let (main, shared) = (domain(), domain());
    success(main, |request| {
        let enter = |request: &Request| {
            request.enter(shared).map(|entered| {
                entered.keep();
            })
        };
        request
            .fan_out(vec![|request: &Request| enter(request)])
            .unwrap()
            .pop()
            .unwrap()
            .unwrap();
        assert!(matches!(request.enter(shared), Err(Error::AlreadyHeld)));
        let block = shared
            .allocate(16, 16)
            .unwrap()
            .as_ptr()
            .expose_provenance();
        let leave = move |request: &Request| {
            let block = NonNull::new(std::ptr::with_exposed_provenance_mut(block)).unwrap();
            // SAFETY: allocated above, and not used afterwards.
            unsafe { shared.deallocate(block).unwrap() };
            request.leave(shared)
        };
        request
            .fan_out(vec![leave])
            .unwrap()
            .pop()
            .unwrap()
            .unwrap();
        assert!(matches!(shared.allocate(8, 8), Err(Error::NotHeld)));
    });
    success(shared, |_| ());
}

#[test]
fn ticket_of_ended_request_is_refused() {
    let domain = domain();
    let ticket = success(domain, |request| request.ticket().unwrap());
    let late = |ticket: Ticket| {
        let outcome = thread::spawn(move || ticket.join(|_| ())).join().unwrap();
        assert!(
            matches!(outcome, Err(RunError::Refused(Error::Ended))),
            "{outcome:?}"
        );
    };
    late(ticket);
    success(domain, |_| late(ticket));
    let mut failed = None;
    failure(domain, |request| {
        failed = Some(request.ticket().unwrap());
        null_write();
    });
    late(failed.unwrap());
    success(domain, |request| {
        let own = request.ticket().unwrap().join(|_| ());
        assert!(matches!(own, Err(RunError::Refused(Error::Nested))));
    });
}

#[test]
fn panic_of_member_fails_request_with_its_message() {
    let failure = failure(domain(), |request| {
        let _ = request.fan_out(vec![|_: &Request| panic!("piece {}", 7)]);
        unreachable!("the request has failed");
    });
    assert_eq!((failure.kind, &*failure.message), (Kind::Panic, "piece 7"));
}

#[test]
fn defers_of_members_run_on_failure() {
    let count = Arc::new(AtomicU32::new(0));
    let theirs = Arc::clone(&count);
    failure(domain(), |request| {
        let defer = move |request: &Request| {
            let count = Arc::clone(&theirs);
            request
                .defer(move || {
                    count.fetch_add(1, Ordering::SeqCst);
                })
                .unwrap();
        };
        request.fan_out(vec![defer.clone(), defer]).unwrap();
        null_write();
    });
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[test]
fn pthread_exit_of_member_ends_request_not_thread() {
    let domain = domain();
    let (to_member, thread) = member(|_| {
        // SAFETY: ends the request instead of the thread; its frames own nothing.
        unsafe { libc::pthread_exit(std::ptr::null_mut()) }
    });
    let failure = failure(domain, |request| {
        to_member.send(request.ticket().unwrap()).unwrap();
        loop {
            black_box(());
        }
    });
    assert_eq!(failure.kind, Kind::Abort);
    match thread.join().unwrap() {
        Err(RunError::Failed(theirs)) => assert_eq!(theirs.incident, failure.incident),
        other => panic!("{other:?}"),
    }
    success(domain, |_| ());
}

#[test]
fn member_returns_only_after_threads_it_started() {
    let domain = domain();
    let has_returned = Arc::new(AtomicBool::new(false));
    let (theirs, seen) = (Arc::clone(&has_returned), Arc::new(AtomicBool::new(false)));
    let sees = Arc::clone(&seen);
    let (ready, is_ready) = mpsc::channel();
    let (send, receive) = mpsc::channel::<Ticket>();
    let starter = thread::spawn(move || {
        let piece = move |_: &Request| {
            // SAFETY: blocks all signals of this thread, so that the failure cannot interrupt it.
            unsafe {
                let mut all = std::mem::zeroed();
                libc::sigfillset(&raw mut all);
                libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
            }
            ready.send(()).unwrap();
            // The starter must not return before this does; a slow machine only weakens the check.
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(200) {
                if theirs.load(Ordering::SeqCst) {
                    sees.store(true, Ordering::SeqCst);
                    break;
                }
            }
        };
        let outcome = receive.recv().unwrap().join(|request| {
            let _ = request.fan_out(vec![piece]);
            unreachable!("the request has failed");
        });
        has_returned.store(true, Ordering::SeqCst);
        outcome
    });
    let failure = failure(domain, |request| {
        send.send(request.ticket().unwrap()).unwrap();
        is_ready.recv().unwrap();
        null_write();
    });
    match starter.join().unwrap() {
        Err(RunError::Failed(theirs)) => assert_eq!(theirs.incident, failure.incident),
        other => panic!("{other:?}"),
    }
    assert!(
        !seen.load(Ordering::SeqCst),
        "the starter returned while its thread was using its stack"
    );
    success(domain, |_| ());
}

#[test]
fn death_of_member_thread_fails_request() {
    let domain = domain();
    let (inside, is_inside) = mpsc::channel();
    let (to_member, thread) = member(move |_| {
        inside.send(()).unwrap();
        // SAFETY: ends the thread without unwinding; what its frames own is leaked.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    });
    let failure = failure(domain, |request| {
        to_member.send(request.ticket().unwrap()).unwrap();
        is_inside.recv().unwrap();
    });
    assert_eq!(failure.kind, Kind::ThreadDeath);
    // It has no result.
    std::mem::forget(thread);
    success(domain, |_| ());
}

#[test]
fn many_threads_take_turns_in_one_domain() {
    const THREADS: u64 = 48;
    let domain: &'static Domain = domain();
    let counted = success(domain, |request| {
        let block = NonNull::from(request.alloc(AtomicU64::new(0)).unwrap());
        request.set_root(Some(block)).unwrap();
        block.as_ptr().expose_provenance()
    });
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            thread::spawn(move || {
                for round in 0..20 {
                    if (number + round) % 7 == 0 {
                        failure(domain, |_| null_write());
                        continue;
                    }
                    success(domain, |request| {
                        let add = move |_: &Request| {
                            let count = std::ptr::with_exposed_provenance::<AtomicU64>(counted);
                            // SAFETY: in the domain, which the request holds.
                            unsafe { (*count).fetch_add(1, Ordering::SeqCst) };
                        };
                        if round == 10 {
                            request.fan_out(vec![add, add]).unwrap();
                        } else {
                            add(request);
                            add(request);
                        }
                    });
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let good = (0..THREADS)
        .flat_map(|number| (0..20).map(move |round| number + round))
        .filter(|sum| sum % 7 != 0)
        .count() as u64;
    success(domain, |_| {
        // SAFETY: in the domain, which the request holds.
        let count = unsafe { &*std::ptr::with_exposed_provenance::<AtomicU64>(counted) };
        assert_eq!(count.load(Ordering::SeqCst), 2 * good);
    });
}
