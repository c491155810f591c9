//! Requests that would wait for each other: one is told, and both users' data are right.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vmsrs::{App, Domain, Error, Options, Request, RunError};

use crate::host::Guest;
use crate::raw;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "deadlock_is_reported_to_one_request",
    machine: Machine::Usual,
    steps: &[
        ("circle", circle),
        ("restored", restored),
        ("orphan", orphan),
    ],
    host,
};

/// Longer than any lock should take, shorter than the limit of a behaviour.
const PATIENCE: Duration = Duration::from_secs(60);

fn host(guest: &mut Guest) -> Result<()> {
    guest.run("circle", "")?;
    guest.run("restored", "")?;
    guest.run("orphan", "").map(drop)
}

fn counter(key: &str) -> Result<&'static Domain> {
    // SAFETY: no request here lends its locals to others.
    let domain = unsafe { App::open("circle") }?.domain(key)?;
    domain.run(|request| {
        let block = request.alloc(0u64)?;
        request.set_root(Some(block.into()))
    })?;
    Ok(domain)
}

fn cell(domain: &'static Domain) -> *mut u64 {
    domain.root_address().cast()
}

fn options() -> Options {
    Options {
        lock_timeout: Some(PATIENCE),
        ..Options::default()
    }
}

fn circle(_: &str) -> Result<()> {
    const ROUNDS: u64 = 20;
    let (one, two) = (counter("one")?, counter("two")?);
    let both = Arc::new(Barrier::new(2));
    let start = Instant::now();
    let threads = [(one, two), (two, one)].map(|(first, second)| {
        let both = Arc::clone(&both);
        thread::spawn(move || -> Result<u64> {
            let mut told = 0;
            for _ in 0..ROUNDS {
                let mut met = false;
                loop {
                    let outcome = first.run_with(&options(), |request: &Request| {
                        // SAFETY: held, and the root leads to a number.
                        unsafe { *cell(first) += 1 };
                        if !met {
                            both.wait();
                            met = true;
                        }
                        let second = request.enter(second)?.keep();
                        // SAFETY: as above.
                        unsafe { *cell(second) += 1 };
                        Ok::<_, Error>(())
                    });
                    match outcome {
                        Ok(()) => break,
                        Err(RunError::GivenUp(Error::WouldDeadlock)) => told += 1,
                        other => bail!("{other:?}"),
                    }
                }
                // Who goes on alone would hold its domain while it waits for the other's next round.
                both.wait();
            }
            Ok(told)
        })
    });
    let mut told = 0;
    for thread in threads {
        told += thread.join().ok().context("a thread panicked")??;
    }
    ensure!(told >= ROUNDS, "in each round they met: {told}");
    ensure!(start.elapsed() < PATIENCE, "nobody waited for a timeout");
    for domain in [one, two] {
        // SAFETY: as above.
        let kept = domain.run(|_| Ok::<_, Error>(unsafe { *cell(domain) }))?;
        ensure!(kept == 2 * ROUNDS, "both users' data are right: {kept}");
    }
    Ok(())
}

/// Whoever waits for the lock of a failing request sees what was restored.
fn restored(_: &str) -> Result<()> {
    const WAITERS: usize = 8;
    let shared = counter("restored")?;
    let (inside, is_inside) = std::sync::mpsc::channel();
    let guilty = thread::spawn(move || {
        shared.run(|_| {
            // SAFETY: as above.
            unsafe { *cell(shared) = 77 };
            // The receiver waits for this.
            let _ = inside.send(());
            // Until somebody waits.
            while !waited_for(shared) {
                thread::yield_now();
            }
            // SAFETY: a wild write, which ends the request.
            unsafe { crate::fault::store(std::ptr::null_mut(), 1) };
            Ok::<_, Error>(())
        })
    });
    is_inside.recv()?;
    let waiters: Vec<_> = (0..WAITERS)
        .map(|_| {
            thread::spawn(move || {
                shared.run_with(&options(), |_| {
                    // SAFETY: as above.
                    Ok::<_, Error>(unsafe { *cell(shared) })
                })
            })
        })
        .collect();
    let outcome = guilty.join().ok().context("the guilty one panicked")?;
    ensure!(matches!(outcome, Err(RunError::Failed(_))), "{outcome:?}");
    for waiter in waiters {
        let seen = waiter.join().ok().context("a waiter panicked")??;
        ensure!(seen == 0, "a waiter saw {seen}");
    }
    Ok(())
}

/// Whether somebody waits for the domain: a try without patience marks it the same way, so a ninth
/// thread may stand for the others.
fn waited_for(shared: &'static Domain) -> bool {
    let little = Options {
        lock_timeout: Some(Duration::from_millis(1)),
        ..Options::default()
    };
    let refused = thread::spawn(move || shared.run_with(&little, |_| Ok::<_, Error>(())));
    matches!(
        refused.join(),
        Ok(Err(RunError::Refused(Error::LockTimeout { .. })))
    )
}

/// A domain whose holder has lost its tag is released to who waits for it.
fn orphan(_: &str) -> Result<()> {
    let app = raw::App::open("orphan")?;
    let (domain, page) = app.domain("user", 4)?;
    let page = page.expose_provenance();
    let page = move || std::ptr::with_exposed_provenance_mut::<u8>(page);
    thread::scope(|scope| -> Result<()> {
        let (lost, is_lost) = std::sync::mpsc::channel();
        let (end, may_end) = std::sync::mpsc::channel::<()>();
        let holder = scope.spawn(|| -> Result<()> {
            let (lost, may_end) = (lost, may_end);
            let thread = app.thread()?;
            thread.begin(&[domain])?;
            // SAFETY: the page is the domain's, which the request holds.
            unsafe { raw::poke(page(), 77) };
            // SAFETY: the control block is mapped; a stray write of the program's own.
            unsafe { std::ptr::write_volatile(&raw mut (*thread.control()).tag, 0xbad) };
            lost.send(())?;
            may_end.recv()?;
            Ok(())
        });
        is_lost.recv()?;
        let thread = app.thread()?;
        let tag = thread.begin(&[])?;
        let taken = thread.lock_wait(tag, domain, PATIENCE.as_millis() as u32);
        // SAFETY: the pages are readable by the whole process.
        let seen = unsafe { raw::peek(page()) };
        end.send(())?;
        holder.join().ok().context("the holder panicked")??;
        taken.context("the lock")?;
        ensure!(seen == 0, "the draft is gone, not {seen}");
        Ok(())
    })
}
