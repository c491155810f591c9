//! When requests would wait for each other, one of them gets an error, and both users' data are right.

use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vmsrs::{App, Domain, Error, Options, Request, RunError};

use crate::counter::Counter;
use crate::fault::wild_write;
use crate::limits::{EVENT_LIMIT, patient};
use crate::raw;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "deadlock_is_reported_to_one_request",
    machine: Machine::Usual,
    steps: &[
        ("deadlock", deadlock),
        ("restored", restored),
        ("orphan", orphan),
    ],
    host: |guest| guest.run_steps(&["deadlock", "restored", "orphan"]),
};

fn counter(key: &str) -> Result<Counter> {
    // SAFETY: no request here shares its locals with other threads.
    Counter::open(unsafe { App::open("deadlock") }?, key)
}

fn deadlock(_: &str) -> Result<()> {
    const ROUNDS: u64 = 20;
    let (one, two) = (counter("one")?, counter("two")?);
    let both = Arc::new(Barrier::new(2));
    let threads = [(one, two), (two, one)].map(|(first, second)| {
        let both = Arc::clone(&both);
        thread::spawn(move || -> Result<u64> {
            let mut deadlocks = 0;
            for _ in 0..ROUNDS {
                let mut met = false;
                loop {
                    let outcome = first.domain().run_with(&patient(), |request: &Request| {
                        first.add(1);
                        if !met {
                            both.wait();
                            met = true;
                        }
                        request.enter(second.domain())?.keep();
                        second.add(1);
                        Ok::<_, Error>(())
                    });
                    // A lock that times out is an error here.
                    match outcome {
                        Ok(()) => break,
                        Err(RunError::GivenUp(Error::WouldDeadlock)) => deadlocks += 1,
                        other => bail!("{other:?}"),
                    }
                }
                // A thread that went on alone would hold its domain until the other's next round.
                both.wait();
            }
            Ok(deadlocks)
        })
    });
    let mut deadlocks = 0;
    for thread in threads {
        deadlocks += thread.join().ok().context("a thread panicked")??;
    }
    ensure!(
        deadlocks >= ROUNDS,
        "{deadlocks} deadlocks were reported in {ROUNDS} rounds"
    );
    for counter in [one, two] {
        let kept = counter.read()?;
        ensure!(kept == 2 * ROUNDS, "{kept} of {} commits", 2 * ROUNDS);
    }
    Ok(())
}

/// A request that waits for the lock of a failing request sees the restored data.
fn restored(_: &str) -> Result<()> {
    const WAITERS: usize = 8;
    let shared = counter("restored")?;
    let (hold, is_held) = mpsc::channel();
    let guilty = thread::spawn(move || {
        shared.domain().run(|_| {
            shared.set(77);
            // The receiver waits for this.
            let _ = hold.send(());
            while !has_waiters(shared.domain()) {
                thread::yield_now();
            }
            wild_write();
            Ok::<_, Error>(())
        })
    });
    is_held.recv()?;
    let waiters: Vec<_> = (0..WAITERS)
        .map(|_| thread::spawn(move || shared.read()))
        .collect();
    let outcome = guilty.join().ok().context("the failing thread panicked")?;
    ensure!(matches!(outcome, Err(RunError::Failed(_))), "{outcome:?}");
    for waiter in waiters {
        let seen = waiter.join().ok().context("a waiter panicked")??;
        ensure!(seen == 0, "a waiter saw {seen}");
    }
    Ok(())
}

/// Whether a request waits for the domain. A short wait marks the lock in the same way, so this thread may itself be
/// the waiter.
fn has_waiters(shared: &'static Domain) -> bool {
    let options = Options {
        lock_timeout: Some(Duration::from_millis(1)),
        ..Options::default()
    };
    let refused = thread::spawn(move || shared.run_with(&options, |_| Ok::<_, Error>(())));
    matches!(
        refused.join(),
        Ok(Err(RunError::Refused(Error::LockTimeout { .. })))
    )
}

/// A domain whose holder has lost its tag is released to a waiter.
fn orphan(_: &str) -> Result<()> {
    let app = raw::App::open("orphan")?;
    let (domain, page) = app.domain("user", 4)?;
    let address = page.expose_provenance();
    let page = move || std::ptr::with_exposed_provenance_mut::<u8>(address);
    thread::scope(|scope| -> Result<()> {
        let (lose, is_lost) = mpsc::channel();
        let (end, may_end) = mpsc::channel::<()>();
        let holder = scope.spawn(|| -> Result<()> {
            let (lose, may_end) = (lose, may_end);
            let thread = app.thread()?;
            thread.begin(&[domain])?;
            // SAFETY: the page is the domain's, which the request holds.
            unsafe { raw::poke(page(), 77) };
            // SAFETY: the control block is mapped; this is a stray write of the program.
            unsafe { std::ptr::write_volatile(&raw mut (*thread.control()).tag, 0xbad) };
            lose.send(())?;
            may_end.recv()?;
            Ok(())
        });
        is_lost.recv()?;
        let thread = app.thread()?;
        let tag = thread.begin(&[])?;
        let taken = thread.lock_wait(tag, domain, EVENT_LIMIT.as_millis() as u32);
        // SAFETY: the pages are readable by the whole process.
        let seen = unsafe { raw::peek(page()) };
        end.send(())?;
        holder.join().ok().context("the holder panicked")??;
        taken.context("the lock")?;
        ensure!(seen == 0, "the page holds {seen}, which was not committed");
        Ok(())
    })
}
