//! Several threads work for one request: when one fails, all come to their landings, whatever they do.

use std::hint::black_box;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail, ensure};
use vmsrs::{App, Audit, Domain, Error, JoinError, Kind, Options, Request, RunError, Ticket};

use crate::fault::store;
use crate::host::Guest;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "threads_of_a_request_fail_together",
    machine: Machine::Usual,
    steps: &[
        ("commits", commits),
        ("heaps", heaps),
        ("landings", landings),
        ("gone", gone),
        ("fork", fork),
        ("pool", pool),
    ],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run("commits", "")?;
    guest.run("heaps", "")?;
    let incident = guest.run("landings", "")?;
    let facts = guest.incident(incident.trim())?;
    ensure!(facts["kind"] == "memory", "one incident for all: {facts}");
    let incident = guest.run("gone", "")?;
    let facts = guest.incident(incident.trim())?;
    ensure!(facts["kind"] == "thread-death", "its kind: {facts}");
    guest.run("fork", "")?;
    guest.run("pool", "").map(drop)
}

fn app() -> Result<&'static App> {
    // SAFETY: no request here lends its locals to others but by fan_out.
    Ok(unsafe { App::open("members") }?)
}

/// A domain whose root leads to a number.
fn counter(app: &'static App, key: &str) -> Result<&'static Domain> {
    let domain = app.domain(key)?;
    domain.run(|request| {
        let block = request.alloc(0u64)?;
        request.set_root(Some(block.into()))
    })?;
    Ok(domain)
}

/// Adds to the number of a domain that the request holds.
fn add(domain: &'static Domain, value: u64) {
    let number = domain.root_address().cast::<u64>();
    // SAFETY: the domain is held, and its root leads to its number.
    unsafe { number.write_volatile(number.read_volatile() + value) };
}

fn number(domain: &'static Domain) -> Result<u64> {
    let read = |_: &Request| -> Result<u64, Error> {
        // SAFETY: as in add().
        Ok(unsafe { domain.root_address().cast::<u64>().read_volatile() })
    };
    Ok(domain.run(read)?)
}

type Member = JoinHandle<Result<(), JoinError>>;

/// A thread that joins with the ticket it gets.
fn member(work: impl FnOnce(&Request) + Send + 'static) -> (mpsc::Sender<Ticket>, Member) {
    let (send, receive) = mpsc::channel::<Ticket>();
    let thread = thread::spawn(move || match receive.recv() {
        Ok(ticket) => ticket.join(work),
        Err(_) => Err(RunError::Refused(Error::Ended)),
    });
    (send, thread)
}

/// What members write, also to a domain that another one has entered, commits with the request.
fn commits(_: &str) -> Result<()> {
    let app = app()?;
    let (main, shared) = (counter(app, "main")?, counter(app, "shared")?);
    let before = (number(main)?, number(shared)?);
    main.run(|request| {
        request.enter(shared)?.keep();
        let pieces: Vec<_> = (0..8)
            .map(|piece| {
                move |request: &Request| {
                    if piece == 0 {
                        add(main, 1);
                    }
                    if piece == 1 {
                        add(shared, 1);
                    }
                    request.alloc([piece; 64]).map(|_| ())
                }
            })
            .collect();
        request
            .fan_out(pieces)?
            .into_iter()
            .collect::<Result<(), Error>>()
    })?;
    let after = (number(main)?, number(shared)?);
    ensure!(
        after == (before.0 + 1, before.1 + 1),
        "{before:?} to {after:?}"
    );
    // A section that a member leaves is committed, whatever becomes of the request.
    let outcome = main.run(|request| {
        let section = |request: &Request| -> Result<(), Error> {
            let entered = request.enter(shared)?;
            add(shared, 1);
            add(main, 1);
            entered.leave()
        };
        request
            .fan_out(vec![section])?
            .into_iter()
            .collect::<Result<(), Error>>()?;
        // SAFETY: a wild write, which ends the request.
        unsafe { store(std::ptr::null_mut(), 1) };
        Ok::<_, Error>(())
    });
    ensure!(matches!(outcome, Err(RunError::Failed(_))), "{outcome:?}");
    let last = (number(main)?, number(shared)?);
    ensure!(last == (after.0, after.1 + 1), "{after:?} to {last:?}");
    Ok(())
}

/// A commit in the middle does not catch a member inside of the heap: what the request falls back to when
/// it fails is whole.
fn heaps(_: &str) -> Result<()> {
    type Piece = Box<dyn FnOnce(&Request) -> Result<(), Error> + Send>;
    let domain = counter(app()?, "heaps")?;
    let whole = Options {
        audit: Audit::Whole,
        ..Options::default()
    };
    for round in 0..10 {
        let outcome = domain.run(|request| {
            let busy = |_| -> Piece {
                Box::new(|request: &Request| {
                    loop {
                        let block = NonNull::from(request.alloc([1u64; 20])?);
                        // SAFETY: live, and used no more.
                        unsafe { request.free(block)? };
                    }
                })
            };
            let commits = |request: &Request| -> Result<(), Error> {
                for _ in 0..10 {
                    request.commit(false)?;
                }
                // SAFETY: a wild write, which ends the request.
                unsafe { store(std::ptr::null_mut(), 1) };
                Ok(())
            };
            let mut pieces: Vec<_> = (0..3).map(busy).collect();
            pieces.push(Box::new(commits));
            request
                .fan_out(pieces)?
                .into_iter()
                .collect::<Result<(), Error>>()
        });
        match outcome {
            Err(RunError::Failed(failure)) => ensure!(
                failure.kind == Kind::Memory && failure.address == 0,
                "{failure}"
            ),
            other => bail!("round {round}: {other:?}"),
        }
        domain.run_with(&whole, |request| request.alloc(round).map(drop))?;
    }
    Ok(())
}

fn landings(_: &str) -> Result<()> {
    let app = app()?;
    let (main, shared) = (counter(app, "main")?, counter(app, "shared")?);
    let busy = counter(app, "busy")?;
    let before = (number(main)?, number(shared)?);
    let ready = Arc::new(Barrier::new(5));
    // Another request holds what one of the members waits for.
    let (held, is_held) = mpsc::channel();
    let (free, freed) = mpsc::channel::<()>();
    let holder = thread::spawn(move || {
        busy.run(|_| {
            // The other ends are there until the members have landed.
            let _ = held.send(());
            let _ = freed.recv();
            Ok::<_, Error>(())
        })
    });
    is_held.recv()?;
    let mut ends = [0; 2];
    // SAFETY: fills two descriptors.
    ensure!(unsafe { libc::pipe(ends.as_mut_ptr()) } == 0, "no pipe");
    // SAFETY: made above, and nobody else's.
    let mut pipe = unsafe { std::fs::File::from_raw_fd(ends[0]) };
    let at = |ready: &Arc<Barrier>| {
        let ready = Arc::clone(ready);
        move || {
            ready.wait();
        }
    };
    let reading = at(&ready);
    let sleeping = at(&ready);
    let waiting = at(&ready);
    let computing = at(&ready);
    let members = [
        member(move |_| {
            add(shared, 100);
            reading();
            let mut byte = [0];
            let _ = pipe.read(&mut byte);
        }),
        member(move |_| {
            sleeping();
            let word = AtomicU32::new(0);
            let forever = std::ptr::null::<libc::timespec>();
            // SAFETY: sleeps on a word that nobody changes.
            unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, 0, forever) };
        }),
        member(move |request| {
            waiting();
            drop(request.enter(busy).map(vmsrs::Entered::keep));
        }),
        member(move |_| {
            computing();
            loop {
                black_box(());
            }
        }),
    ];
    let outcome = main.run(|request| {
        add(main, 100);
        request.enter(shared)?.keep();
        for (send, _) in &members {
            // Its thread waits for this.
            let _ = send.send(request.ticket()?);
        }
        ready.wait();
        // SAFETY: a wild write, which ends the request.
        unsafe { store(std::ptr::null_mut(), 1) };
        Ok::<_, Error>(())
    });
    let Err(RunError::Failed(failure)) = outcome else {
        bail!("the request should have failed: {outcome:?}")
    };
    ensure!(failure.kind == Kind::Memory, "{failure}");
    for (place, (_, thread)) in members.into_iter().enumerate() {
        match thread.join().ok().context("a member panicked")? {
            Err(RunError::Failed(theirs)) if theirs.incident == failure.incident => {}
            other => bail!("member {place}: {other:?}"),
        }
    }
    free.send(())?;
    holder.join().ok().context("the holder panicked")??;
    let after = (number(main)?, number(shared)?);
    ensure!(after == before, "{before:?} to {after:?}");
    println!("{}", failure.incident);
    Ok(())
}

/// A member that ends without a word fails its request.
fn gone(_: &str) -> Result<()> {
    let app = app()?;
    let main = counter(app, "main")?;
    let before = number(main)?;
    let (send, thread) = member(move |_| {
        add(main, 100);
        // SAFETY: ends the thread; what its frames own is leaked.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    });
    let outcome = main.run(|request| {
        // Its thread waits for this.
        let _ = send.send(request.ticket()?);
        loop {
            black_box(());
        }
        #[expect(unreachable_code, reason = "gives the closure its type")]
        Ok::<_, Error>(())
    });
    // It cannot tell how it ended.
    std::mem::forget(thread);
    let Err(RunError::Failed(failure)) = outcome else {
        bail!("the request should have failed: {outcome:?}")
    };
    ensure!(failure.kind == Kind::ThreadDeath, "{failure}");
    ensure!(number(main)? == before, "its write is gone");
    println!("{}", failure.incident);
    Ok(())
}

/// The child of a fork is no member, and cannot become one.
fn fork(_: &str) -> Result<()> {
    let main = counter(app()?, "main")?;
    let before = number(main)?;
    main.run(|request| {
        let fork = |request: &Request| {
            let ticket = request.ticket();
            // SAFETY: the child only writes to its own memory, and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let refused = ticket.map(|ticket| ticket.join(|_| ()));
                let fine = matches!(refused, Ok(Err(RunError::Refused(Error::Forked))));
                // SAFETY: ends the child.
                unsafe { libc::_exit(i32::from(!fine)) }
            }
            let mut status = 0;
            // SAFETY: waits for the child.
            let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
            add(main, 1);
            ended == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
        };
        let fine = request.fan_out(vec![fork])?;
        if fine == [true] {
            Ok(())
        } else {
            Err(Error::Forked)
        }
    })?;
    ensure!(number(main)? == before + 1, "the parent's member commits");
    Ok(())
}

/// A pool of many more threads than CPUs, some of whose requests fail.
fn pool(_: &str) -> Result<()> {
    const THREADS: u64 = 64;
    const ROUNDS: u64 = 10;
    let main = counter(app()?, "pool")?;
    let done = Arc::new(AtomicU32::new(0));
    let threads: Vec<_> = (0..THREADS)
        .map(|seed| {
            let done = Arc::clone(&done);
            thread::spawn(move || -> Result<()> {
                for round in 0..ROUNDS {
                    let fails = (seed + round) % 5 == 0;
                    let outcome = main.run(|_| {
                        add(main, 1);
                        if fails {
                            // SAFETY: a wild write, which ends the request.
                            unsafe { store(std::ptr::null_mut(), 1) };
                        }
                        Ok::<_, Error>(())
                    });
                    match outcome {
                        Ok(()) if !fails => {
                            done.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(RunError::Failed(_)) if fails => {}
                        other => bail!("{other:?}"),
                    }
                }
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().ok().context("a thread panicked")??;
    }
    let (number, done) = (number(main)?, u64::from(done.load(Ordering::SeqCst)));
    ensure!(number == done, "{number} of {done} commits");
    Ok(())
}
