//! When a request fails with a shared domain's lock held, the domain is restored before the lock is released.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use vmsrs::{App, Kind, RunError};

use crate::fault::wild_write;
use crate::limits::patient;
use crate::{Behaviour, Machine};

/// How often a request fails with the lock held.
const ROUNDS: u64 = 50;

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "failed_request_restores_data_before_releasing_lock",
    machine: Machine::Usual,
    steps: &[("lock", lock)],
    host: |guest| guest.run_steps(&["lock"]),
};

/// What the lock protects: two numbers that are equal whenever the lock is free.
#[repr(C)]
struct Guarded {
    one: u64,
    other: u64,
}

static HALF_DONE: AtomicBool = AtomicBool::new(false);
static WAITING: AtomicBool = AtomicBool::new(false);

fn lock(_: &str) -> Result<()> {
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("lock-after-error") }?;
    let shared = app.domain("shared")?;
    let guilty = app.domain("guilty")?;
    let innocent = app.domain("innocent")?;
    shared.run(|request| {
        let guarded = request.alloc(Guarded { one: 1, other: 1 })?;
        request.set_root(Some(guarded.into()))
    })?;
    // Looked up in each request, since a raw pointer cannot be sent to another thread.
    let guarded = || shared.root_address().cast::<Guarded>();

    for round in 1..=ROUNDS {
        HALF_DONE.store(false, Ordering::SeqCst);
        WAITING.store(false, Ordering::SeqCst);
        let other = std::thread::spawn(move || -> Result<u64> {
            while !HALF_DONE.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let seen = innocent.run_with(&patient(), |request| {
                WAITING.store(true, Ordering::SeqCst);
                let entered = request.enter(shared)?;
                // SAFETY: the shared domain is held, and the block lives in it.
                let (one, other) = unsafe { ((*guarded()).one, (*guarded()).other) };
                // SAFETY: as above.
                unsafe {
                    (*guarded()).one += 1;
                    (*guarded()).other += 1;
                }
                entered.leave()?;
                Ok::<_, vmsrs::Error>((one, other))
            })?;
            ensure!(seen.0 == seen.1, "a partial change was visible: {seen:?}");
            Ok(seen.0)
        });
        let result = guilty.run(|request| {
            let _kept = request.enter(shared)?.keep();
            // SAFETY: the shared domain is held, and the block lives in it.
            unsafe { (*guarded()).one = u64::MAX };
            HALF_DONE.store(true, Ordering::SeqCst);
            while !WAITING.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            wild_write();
            Ok::<_, vmsrs::Error>(())
        });
        let Err(RunError::Failed(failure)) = result else {
            anyhow::bail!("round {round}: the wild write was not detected")
        };
        ensure!(failure.kind == Kind::Memory, "round {round}: {failure}");
        let seen = other
            .join()
            .ok()
            .context("the innocent thread panicked")??;
        ensure!(seen == round, "round {round}: the other request saw {seen}");
    }
    Ok(())
}
