//! The threads of a request fail together: when one fails, the others leave the request, whatever they are doing.

use std::hint::black_box;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail, ensure};
use vmsrs::{App, Audit, Error, JoinError, Kind, Options, Request, RunError, Ticket};

use crate::counter::Counter;
use crate::fault::wild_write;
use crate::host::Guest;
use crate::limits::patient;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "threads_of_a_request_fail_together",
    machine: Machine::Usual,
    steps: &[
        ("commits", commits),
        ("heaps", heaps),
        ("all fail", all_fail),
        ("thread death", thread_death),
        ("fork", fork),
        ("pool", pool),
    ],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run_steps(&["commits", "heaps"])?;
    let incident = guest.run("all fail", "")?;
    let facts = guest.incident(incident.trim())?;
    ensure!(
        facts["kind"] == "memory",
        "not the error of the member: {facts}"
    );
    let incident = guest.run("thread death", "")?;
    let facts = guest.incident(incident.trim())?;
    ensure!(
        facts["kind"] == "thread-death",
        "not the death of a thread: {facts}"
    );
    guest.run_steps(&["fork", "pool"])
}

fn app() -> Result<&'static App> {
    // SAFETY: requests here share their locals only by fan_out.
    Ok(unsafe { App::open("members") }?)
}

type Member = JoinHandle<Result<(), JoinError>>;

/// A thread that joins a request with the ticket that it is sent.
fn member(work: impl FnOnce(&Request) + Send + 'static) -> (mpsc::Sender<Ticket>, Member) {
    let (send, receive) = mpsc::channel::<Ticket>();
    let thread = thread::spawn(move || match receive.recv() {
        Ok(ticket) => ticket.join(work),
        Err(_) => Err(RunError::Refused(Error::Ended)),
    });
    (send, thread)
}

/// Writes of members are committed with the request, also those to a domain that another member has entered.
fn commits(_: &str) -> Result<()> {
    let app = app()?;
    let (main, shared) = (Counter::open(app, "main")?, Counter::open(app, "shared")?);
    let before = (main.read()?, shared.read()?);
    main.domain().run(|request| {
        request.enter(shared.domain())?.keep();
        let pieces: Vec<_> = (0..8)
            .map(|piece| {
                move |request: &Request| {
                    if piece == 0 {
                        main.add(1);
                    }
                    if piece == 1 {
                        shared.add(1);
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
    let after = (main.read()?, shared.read()?);
    ensure!(
        after == (before.0 + 1, before.1 + 1),
        "{before:?} to {after:?}"
    );
    // A section that a member leaves is committed, however the request ends.
    let outcome = main.domain().run(|request| {
        let section = |request: &Request| -> Result<(), Error> {
            let entered = request.enter(shared.domain())?;
            shared.add(1);
            main.add(1);
            entered.leave()
        };
        request
            .fan_out(vec![section])?
            .into_iter()
            .collect::<Result<(), Error>>()?;
        wild_write();
        Ok::<_, Error>(())
    });
    ensure!(matches!(outcome, Err(RunError::Failed(_))), "{outcome:?}");
    let last = (main.read()?, shared.read()?);
    ensure!(last == (after.0, after.1 + 1), "{after:?} to {last:?}");
    Ok(())
}

/// A commit within the request never catches a member in the heap: the version that is restored when the request fails
/// is consistent.
fn heaps(_: &str) -> Result<()> {
    type Piece = Box<dyn FnOnce(&Request) -> Result<(), Error> + Send>;
    let domain = Counter::open(app()?, "heaps")?.domain();
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
                        // SAFETY: allocated, and not used any more.
                        unsafe { request.free(block)? };
                    }
                })
            };
            let commits = |request: &Request| -> Result<(), Error> {
                for _ in 0..10 {
                    request.commit(false)?;
                }
                wild_write();
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

/// Members fail with the request wherever they are: in a read, in a futex, in a wait for a lock, in a loop.
fn all_fail(_: &str) -> Result<()> {
    let app = app()?;
    let (main, shared) = (Counter::open(app, "main")?, Counter::open(app, "shared")?);
    let busy = Counter::open(app, "busy")?;
    let before = (main.read()?, shared.read()?);
    let ready = Arc::new(Barrier::new(5));
    // Another request holds the domain that one of the members waits for.
    let (hold, is_held) = mpsc::channel();
    let (release, may_release) = mpsc::channel::<()>();
    let holder = thread::spawn(move || {
        busy.domain().run(|_| {
            // The other ends exist until the members have left.
            let _ = hold.send(());
            let _ = may_release.recv();
            Ok::<_, Error>(())
        })
    });
    is_held.recv()?;
    let mut ends = [0; 2];
    // SAFETY: fills two descriptors.
    ensure!(unsafe { libc::pipe(ends.as_mut_ptr()) } == 0, "no pipe");
    // SAFETY: created above and owned by nobody else.
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
            shared.add(100);
            reading();
            let mut byte = [0];
            let _ = pipe.read(&mut byte);
        }),
        member(move |_| {
            sleeping();
            let word = AtomicU32::new(0);
            let no_limit = std::ptr::null::<libc::timespec>();
            // SAFETY: waits on a word that nobody changes.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    word.as_ptr(),
                    libc::FUTEX_WAIT,
                    0,
                    no_limit,
                )
            };
        }),
        member(move |request| {
            waiting();
            drop(request.enter(busy.domain()).map(vmsrs::Entered::keep));
        }),
        member(move |_| {
            computing();
            loop {
                black_box(());
            }
        }),
    ];
    let outcome = main.domain().run(|request| {
        main.add(100);
        request.enter(shared.domain())?.keep();
        for (send, _) in &members {
            // The thread waits for this.
            let _ = send.send(request.ticket()?);
        }
        ready.wait();
        wild_write();
        Ok::<_, Error>(())
    });
    let Err(RunError::Failed(failure)) = outcome else {
        bail!("the request did not fail: {outcome:?}")
    };
    ensure!(failure.kind == Kind::Memory, "{failure}");
    for (place, (_, thread)) in members.into_iter().enumerate() {
        match thread.join().ok().context("a member panicked")? {
            Err(RunError::Failed(theirs)) if theirs.incident == failure.incident => {}
            other => bail!("member {place}: {other:?}"),
        }
    }
    release.send(())?;
    holder.join().ok().context("the holder panicked")??;
    let after = (main.read()?, shared.read()?);
    ensure!(after == before, "{before:?} to {after:?}");
    println!("{}", failure.incident);
    Ok(())
}

/// A member whose thread ends without leaving the request fails it.
fn thread_death(_: &str) -> Result<()> {
    let app = app()?;
    let main = Counter::open(app, "main")?;
    let before = main.read()?;
    let (send, thread) = member(move |_| {
        main.add(100);
        // SAFETY: ends the thread; what its stack owns is leaked.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    });
    let outcome = main.domain().run(|request| {
        // The thread waits for this.
        let _ = send.send(request.ticket()?);
        loop {
            black_box(());
        }
        #[expect(unreachable_code, reason = "gives the closure its type")]
        Ok::<_, Error>(())
    });
    // It has no result.
    std::mem::forget(thread);
    let Err(RunError::Failed(failure)) = outcome else {
        bail!("the request did not fail: {outcome:?}")
    };
    ensure!(failure.kind == Kind::ThreadDeath, "{failure}");
    ensure!(main.read()? == before, "its write was not discarded");
    println!("{}", failure.incident);
    Ok(())
}

/// The child of a fork is not a member and cannot become one.
fn fork(_: &str) -> Result<()> {
    let main = Counter::open(app()?, "main")?;
    let before = main.read()?;
    main.domain().run(|request| {
        let fork = |request: &Request| {
            let ticket = request.ticket();
            // SAFETY: the child writes only to its own memory, and ends.
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
            main.add(1);
            ended == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
        };
        let fine = request.fan_out(vec![fork])?;
        if fine == [true] {
            Ok(())
        } else {
            Err(Error::Forked)
        }
    })?;
    ensure!(
        main.read()? == before + 1,
        "the parent's member did not commit"
    );
    Ok(())
}

/// Many more threads than CPUs, some of whose requests fail.
fn pool(_: &str) -> Result<()> {
    const THREADS: u64 = 64;
    const ROUNDS: u64 = 10;
    let main = Counter::open(app()?, "pool")?;
    let done = Arc::new(AtomicU32::new(0));
    let threads: Vec<_> = (0..THREADS)
        .map(|seed| {
            let done = Arc::clone(&done);
            thread::spawn(move || -> Result<()> {
                for round in 0..ROUNDS {
                    let fails = (seed + round) % 5 == 0;
                    let outcome = main.domain().run_with(&patient(), |_| {
                        main.add(1);
                        if fails {
                            wild_write();
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
    let (number, done) = (main.read()?, u64::from(done.load(Ordering::SeqCst)));
    ensure!(number == done, "{number} of {done} commits");
    Ok(())
}
