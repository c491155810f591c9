//! Several threads work for one request, which succeeds or fails as a whole.

mod common;

use common::{domain, failure, success};
use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};
use vmsrs::{Domain, Error, JoinError, Kind, Request, RunError, Ticket};

fn null_write() {
    // SAFETY: it is not; that is the test.
    unsafe { black_box(std::ptr::without_provenance_mut::<u32>(16)).write_volatile(1) };
}

type Work = Box<dyn FnOnce(&Request) + Send>;

/// A thread that joins when it gets a ticket, and returns the outcome.
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
fn a_fan_out_does_all_its_pieces_and_gives_what_they_gave() {
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
fn many_members_allocate_and_free_in_one_heap() {
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
                            // SAFETY: live, and used no more.
                            unsafe {
                                assert_eq!(block.as_ref()[0], seed);
                                request.free(block).unwrap();
                            }
                        }
                    }
                    for block in blocks {
                        // SAFETY: live.
                        assert_eq!(unsafe { block.as_ref()[0] }, seed);
                    }
                }
            })
            .collect();
        request.fan_out(pieces).unwrap();
    });
    // The audit of this one looks at what is left.
    success(domain, |_| ());
}

#[test]
fn member_failure_ends_all_with_the_same_failure() {
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
    let (to_guilty, guilty) = member(move |_| {
        theirs.wait();
        null_write();
    });
    let owners = failure(domain, |request| {
        let ticket = request.ticket().unwrap();
        to_busy.send(ticket).unwrap();
        to_guilty.send(ticket).unwrap();
        ready.wait();
        loop {
            black_box(());
        }
    });
    assert_eq!((owners.kind, owners.address), (Kind::Memory, 16));
    for thread in [busy, guilty] {
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
fn members_are_woken_from_read_futex_and_lock() {
    let (main, other) = (domain(), domain());
    let (held, is_held) = mpsc::channel();
    let (free, freed) = mpsc::channel::<()>();
    let holder = thread::spawn(move || {
        success(other, |_| {
            held.send(()).unwrap();
            freed.recv().unwrap();
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
            unreachable!("nothing comes");
        }),
        Box::new(|_| {
            let word = AtomicU32::new(0);
            // SAFETY: sleeps on the word; nobody wakes it.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    word.as_ptr(),
                    libc::FUTEX_WAIT,
                    0,
                    std::ptr::null::<libc::timespec>(),
                )
            };
            unreachable!("nobody wakes it");
        }),
        Box::new(move |request| {
            request.enter(other).unwrap().keep();
            unreachable!("the lock does not come");
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
    free.send(()).unwrap();
    holder.join().unwrap();
    for domain in [main, other] {
        success(domain, |_| ());
    }
}

#[test]
fn the_owner_waits_for_its_members_before_it_commits() {
    let domain = domain();
    let (go, gone) = mpsc::channel::<()>();
    let done = Arc::new(AtomicBool::new(false));
    let theirs = Arc::clone(&done);
    let (inside, is_inside) = mpsc::channel();
    let (to_member, thread) = member(move |_| {
        inside.send(()).unwrap();
        gone.recv().unwrap();
        theirs.store(true, Ordering::SeqCst);
    });
    success(domain, |request| {
        to_member.send(request.ticket().unwrap()).unwrap();
        is_inside.recv().unwrap();
        go.send(()).unwrap();
    });
    assert!(done.load(Ordering::SeqCst));
    thread.join().unwrap().unwrap();
}

#[test]
fn what_one_member_enters_another_may_use_and_leave() {
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
            // SAFETY: taken above, and used no more.
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
fn a_ticket_of_a_request_that_is_over_is_refused() {
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
fn a_panic_of_a_member_fails_the_request_with_its_message() {
    let failure = failure(domain(), |request| {
        let _ = request.fan_out(vec![|_: &Request| panic!("piece {}", 7)]);
        unreachable!("the request has failed");
    });
    assert_eq!((failure.kind, &*failure.message), (Kind::Panic, "piece 7"));
}

#[test]
fn the_defers_of_members_run_when_the_request_fails() {
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
fn pthread_exit_in_a_member_fails_the_request() {
    let domain = domain();
    let (to_member, thread) = member(|_| {
        // SAFETY: does not end the thread, but the request; its frames own nothing.
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
fn member_returns_after_the_threads_it_started() {
    let domain = domain();
    let is_back = Arc::new(AtomicBool::new(false));
    let (theirs, seen) = (Arc::clone(&is_back), Arc::new(AtomicBool::new(false)));
    let sees = Arc::clone(&seen);
    let (ready, is_ready) = mpsc::channel();
    let (send, receive) = mpsc::channel::<Ticket>();
    let starter = thread::spawn(move || {
        let piece = move |_: &Request| {
            // SAFETY: fills a set and blocks it on this thread, which the failure cannot interrupt then.
            unsafe {
                let mut all = std::mem::zeroed();
                libc::sigfillset(&raw mut all);
                libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
            }
            ready.send(()).unwrap();
            // It does not return, however long it takes.
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
        is_back.store(true, Ordering::SeqCst);
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
    assert!(!seen.load(Ordering::SeqCst), "its stack was free too early");
    success(domain, |_| ());
}

#[test]
fn a_member_that_ends_without_leaving_fails_the_request() {
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
    // It cannot tell how it ended.
    std::mem::forget(thread);
    success(domain, |_| ());
}

#[test]
fn many_threads_take_turns_in_a_thousand_requests() {
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
