//! A request that misses its deadline is ended, whatever it is doing.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Result, ensure};
use vmsrs::{App, Domain, Error, Kind, Options, RunError};

use crate::host::Guest;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "missed_deadline_ends_request_whatever_it_does",
    machine: Machine::Usual,
    steps: &[("deadline", deadline)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run("deadline", "").map(drop)
}

/// Runs `body` after a write; it never returns by itself.
fn ends_by_deadline(domain: &'static Domain, name: &str, body: fn(&'static Domain)) -> Result<()> {
    let options = Options {
        deadline: Some(Duration::from_millis(100)),
        ..Options::default()
    };
    let other = domain.app().domain("other")?;
    let result = domain.run_with(&options, |request| {
        request.alloc([1u8; 64])?;
        body(other);
        Ok::<_, Error>(())
    });
    let Err(RunError::Failed(failure)) = result else {
        anyhow::bail!("{name}: {result:?}")
    };
    ensure!(failure.kind == Kind::Deadline, "{name}: {failure}");
    ensure!(failure.drafts > 0, "{name}: what it wrote is discarded");
    Ok(())
}

/// Nobody can interrupt a thread that blocks its signals: its request is failed over its head, and its
/// domain is free for others while the thread still runs.
fn signals_blocked(domain: &'static Domain) -> Result<()> {
    let served = AtomicBool::new(false);
    let options = Options {
        deadline: Some(Duration::from_millis(100)),
        ..Options::default()
    };
    std::thread::scope(|scope| {
        let (inside, is_inside) = mpsc::channel();
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
                let _ = inside.send(());
                while !served.load(Ordering::Relaxed) {
                    spin_loop();
                }
                Ok::<_, Error>(())
            })
        });
        is_inside.recv()?;
        let outcome = domain.run(|request| request.alloc(2u8).map(drop));
        served.store(true, Ordering::Relaxed);
        outcome?;
        match deaf.join() {
            Ok(Err(RunError::Failed(failure))) if failure.kind == Kind::Deadline => Ok(()),
            other => anyhow::bail!("blocked signals: {other:?}"),
        }
    })
}

fn deadline(_: &str) -> Result<()> {
    // SAFETY: no request here lends its locals to others.
    let app = unsafe { App::open("deadline") }?;
    let domain = app.domain("user")?;
    ends_by_deadline(domain, "endless loop", |_| {
        loop {
            spin_loop();
        }
    })?;
    ends_by_deadline(domain, "endless sleep", |_| {
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    })?;
    ends_by_deadline(domain, "endless read", |_| {
        let mut ends = [0; 2];
        let mut byte = 0u8;
        // SAFETY: a new pipe, into which nobody writes; the descriptors go with the process.
        unsafe {
            libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC);
            loop {
                libc::read(ends[0], (&raw mut byte).cast(), 1);
            }
        }
    })?;
    ends_by_deadline(domain, "deadlock of a mutex", |_| {
        let mut mutex = libc::PTHREAD_MUTEX_INITIALIZER;
        loop {
            // SAFETY: a mutex of this thread alone, which waits for itself.
            unsafe { libc::pthread_mutex_lock(&raw mut mutex) };
        }
    })?;
    ends_by_deadline(domain, "endless use of the C library's heap", |_| {
        loop {
            drop(black_box(vec![0u8; 100_000]));
        }
    })?;
    signals_blocked(domain)?;
    domain.run(|request| request.alloc(1u8).map(drop))?;
    ensure!(app.info()?.drafts == 0, "no draft is left");
    Ok(())
}
