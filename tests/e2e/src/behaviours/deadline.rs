//! A request that misses its deadline is ended, whatever it is doing.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use vmsrs::{App, Domain, Error, Failure, Kind, Options, RunError};

use crate::limits::{EVENT_LIMIT, patient};
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "missed_deadline_ends_request_whatever_it_does",
    machine: Machine::Usual,
    steps: &[("deadline", deadline)],
    host: |guest| guest.run_steps(&["deadline"]),
};

/// The first deadline that is tried; a request is to reach its endless part within it.
const FIRST: Duration = Duration::from_millis(100);

fn options(deadline: Duration) -> Options {
    Options {
        deadline: Some(deadline),
        lock_timeout: Some(EVENT_LIMIT),
        ..Options::default()
    }
}

/// The deadline's failure, which must be what came of the request.
fn missed(what: &str, outcome: Result<(), RunError<Error>>) -> Result<Box<Failure>> {
    match outcome {
        Err(RunError::Failed(failure)) if failure.kind == Kind::Deadline => Ok(failure),
        other => bail!("{what}: {other:?}"),
    }
}

/// Runs `body`, which never returns, after a write. On a busy machine the deadline may come before `body` does: then
/// the request runs again, with twice the time.
fn ends_by_deadline(domain: &'static Domain, what: &str, body: fn()) -> Result<()> {
    let mut deadline = FIRST;
    loop {
        let in_body = AtomicBool::new(false);
        let outcome = domain.run_with(&options(deadline), |request| {
            request.alloc([1u8; 64])?;
            in_body.store(true, Ordering::Relaxed);
            body();
            Ok::<_, Error>(())
        });
        let failure = missed(what, outcome)?;
        if in_body.load(Ordering::Relaxed) {
            ensure!(failure.drafts > 0, "{what}: its write was not discarded");
            return Ok(());
        }
        deadline *= 2;
    }
}

/// A thread that blocks its signals cannot be interrupted: its request is failed nevertheless, and its domain is free
/// while the thread still runs.
fn signals_blocked(domain: &'static Domain) -> Result<()> {
    let mut deadline = FIRST;
    while !fails_with_signals_blocked(domain, deadline)? {
        deadline *= 2;
    }
    Ok(())
}

/// Whether the request blocked its signals before the deadline.
fn fails_with_signals_blocked(domain: &'static Domain, deadline: Duration) -> Result<bool> {
    let served = AtomicBool::new(false);
    let options = options(deadline);
    thread::scope(|scope| {
        let (block, is_blocked) = mpsc::channel();
        let (served, options) = (&served, &options);
        let deaf = scope.spawn(move || {
            domain.run_with(options, |request| {
                request.alloc([1u8; 64])?;
                // SAFETY: a set of all signals, for this thread's mask.
                unsafe {
                    let mut all = std::mem::zeroed();
                    libc::sigfillset(&raw mut all);
                    libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
                }
                // The receiver waits for this.
                let _ = block.send(());
                while !served.load(Ordering::Relaxed) {
                    spin_loop();
                }
                Ok::<_, Error>(())
            })
        });
        let blocked = is_blocked.recv().is_ok();
        let outcome = domain.run_with(&patient(), |request| request.alloc(2u8).map(drop));
        served.store(true, Ordering::Relaxed);
        outcome?;
        let deaf = deaf.join();
        missed("blocked signals", deaf.expect("the thread does not panic"))?;
        Ok(blocked)
    })
}

fn deadline(_: &str) -> Result<()> {
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("deadline") }?;
    let domain = app.domain("user")?;
    ends_by_deadline(domain, "endless loop", || {
        loop {
            spin_loop();
        }
    })?;
    ends_by_deadline(domain, "endless sleep", || {
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    })?;
    ends_by_deadline(domain, "endless read", || {
        let mut ends = [0; 2];
        let mut byte = 0u8;
        // SAFETY: a new pipe that nobody writes to; the descriptors are closed with the process.
        unsafe {
            libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC);
            loop {
                libc::read(ends[0], (&raw mut byte).cast(), 1);
            }
        }
    })?;
    ends_by_deadline(domain, "deadlock of a mutex", || {
        let mut mutex = libc::PTHREAD_MUTEX_INITIALIZER;
        loop {
            // SAFETY: a mutex of this thread alone, which waits for itself.
            unsafe { libc::pthread_mutex_lock(&raw mut mutex) };
        }
    })?;
    ends_by_deadline(domain, "endless use of the C library's heap", || {
        loop {
            drop(black_box(vec![0u8; 100_000]));
        }
    })?;
    signals_blocked(domain)?;
    domain.run(|request| request.alloc(1u8).map(drop))?;
    ensure!(app.info()?.drafts == 0, "a draft is left");
    Ok(())
}
