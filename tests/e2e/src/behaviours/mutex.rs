//! A mutex of the server's is released when its request fails, after its function has put right what it guards.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use vmsrs::{App, Domain, Kind, Mutex, Options, Request, RunError};

use crate::counter::Counter;
use crate::fault::wild_write;
use crate::host::Guest;
use crate::limits::patient;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "mutex_is_released_when_its_request_fails",
    machine: Machine::Usual,
    steps: &[("ways", ways), ("many", many)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run_steps(&["ways", "many"])
}

/// Two numbers that are the same unless a request is in the middle of a change.
struct Pair {
    first: u64,
    second: u64,
}

static REPAIRS: AtomicU64 = AtomicU64::new(0);
/// What the function has found of the domain, plus 1: it is free then, and as it was committed.
static FOUND: AtomicU64 = AtomicU64::new(0);
static DOMAIN: AtomicU64 = AtomicU64::new(0);

static PAIR: Mutex<Pair> = Mutex::new(
    Pair {
        first: 0,
        second: 0,
    },
    repair,
);

fn repair(pair: &mut Pair) {
    pair.second = pair.first;
    REPAIRS.fetch_add(1, Ordering::SeqCst);
    let place = DOMAIN.load(Ordering::SeqCst) as *const u64;
    if !place.is_null() {
        // SAFETY: a number in a domain, which every thread may read.
        FOUND.store(unsafe { place.read_volatile() } + 1, Ordering::SeqCst);
    }
}

fn open(name: &str) -> Result<&'static App> {
    // SAFETY: no request here shares its locals with other threads.
    Ok(unsafe { App::open(name) }?)
}

/// How a request ends in the middle of a change.
type Way = fn(&Request);

const WAYS: [(&str, Kind, Way); 3] = [
    ("a null pointer", Kind::Memory, |_| wild_write()),
    ("a failure of the server's", Kind::Invariant, |request| {
        request.fail("on purpose")
    }),
    ("a deadline", Kind::Deadline, |_| {
        loop {
            std::hint::spin_loop();
        }
    }),
];

/// Each way out of a request releases the mutex, restored, for another thread that waits for it in a request.
fn ways(_: &str) -> Result<()> {
    let app = open("mutex")?;
    let [user, other] = ["user", "other"].map(|key| Counter::open(app, key));
    let (user, other) = (user?, other?);
    DOMAIN.store(user.domain().root_address() as u64, Ordering::SeqCst);
    for (round, (name, kind, way)) in WAYS.into_iter().enumerate() {
        let (before, locked) = (user.read()?, AtomicBool::new(false));
        thread::scope(|scope| -> Result<()> {
            let waiter = scope.spawn(|| {
                while !locked.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                other.domain().run(|_| {
                    PAIR.with(|pair| {
                        other.add(1);
                        (pair.first, pair.second)
                    })
                })
            });
            let options = Options {
                deadline: (kind == Kind::Deadline).then_some(Duration::from_millis(300)),
                ..Options::default()
            };
            let outcome = user.domain().run_with(&options, |request| {
                user.add(100);
                PAIR.with(|pair| {
                    locked.store(true, Ordering::SeqCst);
                    pair.first += 1;
                    way(request);
                    pair.second += 1;
                })
            });
            let Err(RunError::Failed(failure)) = outcome else {
                anyhow::bail!("{name}: {outcome:?}");
            };
            ensure!(
                failure.kind == kind && failure.defers_failed == 0,
                "{name}: {failure:?}"
            );
            let seen = waiter.join().expect("the thread does not panic")?;
            let expected = round as u64 + 1;
            ensure!(seen == (expected, expected), "{name}: {seen:?}");
            Ok(())
        })?;
        ensure!(REPAIRS.load(Ordering::SeqCst) == round as u64 + 1, "{name}");
        let found = FOUND.load(Ordering::SeqCst);
        ensure!(
            found == before + 1,
            "{name}: the function has found {found} - 1, not {before}"
        );
        ensure!(
            user.read()? == before && other.read()? == round as u64 + 1,
            "{name}"
        );
    }
    Ok(())
}

/// Domain of a thread.
fn domain_of(app: &'static App, thread: usize) -> Result<&'static Domain> {
    Ok(app.domain(format!("user {thread}"))?)
}

/// Threads whose requests fail now and then, with one mutex: nobody waits for ever, and nobody sees half a change.
fn many(_: &str) -> Result<()> {
    const THREADS: usize = 4;
    const REQUESTS: usize = 300;
    let app = open("mutex")?;
    let failed: usize = thread::scope(|scope| -> Result<usize> {
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                scope.spawn(move || -> Result<usize> {
                    let domain = domain_of(app, number)?;
                    let mut failed = 0;
                    for request in 0..REQUESTS {
                        let outcome = domain.run_with(&patient(), |_| {
                            PAIR.with(|pair| {
                                let whole = pair.first == pair.second;
                                pair.first += 1;
                                if (request + number) % 7 == 0 {
                                    wild_write();
                                }
                                pair.second += 1;
                                whole
                            })
                        });
                        match outcome {
                            Ok(whole) => ensure!(whole, "half a change was seen"),
                            Err(RunError::Failed(_)) => failed += 1,
                            Err(error) => anyhow::bail!("{error}"),
                        }
                    }
                    Ok(failed)
                })
            })
            .collect();
        let mut failed = 0;
        for thread in threads {
            failed += thread.join().expect("the thread does not panic")?;
        }
        Ok(failed)
    })?;
    let (first, second) = PAIR.with(|pair| (pair.first, pair.second))?;
    let total = (THREADS * REQUESTS) as u64;
    ensure!(
        failed > 0 && REPAIRS.load(Ordering::SeqCst) == failed as u64,
        "{failed}"
    );
    ensure!(first == total && second == total, "{first} and {second}");
    Ok(())
}
