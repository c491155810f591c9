//! When the vault is full, allocations fail and everything else works.

use anyhow::{Result, ensure};
use vmsrs::{App, Error, RunError};

use crate::host::Guest;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "full_window_fails_only_allocations",
    machine: Machine::SmallWindow,
    steps: &[("fill", fill)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run_steps(&["fill"])?;
    let status = guest.recovery_status()?;
    ensure!(
        status["sealed_frames"].as_u64() > Some(0),
        "the machine has no sealed frames: {status}"
    );
    Ok(())
}

fn fill(_: &str) -> Result<()> {
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("window-full") }?;
    let domain = app.domain("user")?;
    // More blocks than the vault has room for.
    let mut blocks = 0u32;
    let full = loop {
        ensure!(
            blocks < 1000,
            "8 MB cannot fit into a vault with 7 MiB for pages"
        );
        let result = domain.run(|request| {
            let block = request.domain().allocate(8192, 16)?;
            // SAFETY: a new block of that size.
            unsafe { block.as_ptr().write_bytes(blocks as u8, 8192) };
            Ok(())
        });
        match result {
            Ok(()) => blocks += 1,
            Err(error) => break error,
        }
    };
    ensure!(
        matches!(full, RunError::GivenUp(Error::OutOfMemory { .. })),
        "the allocation did not fail with out of memory: {full:?}"
    );
    ensure!(blocks > 100, "only {blocks} blocks of 8 KiB fit");
    // Requests that do not grow their domain still work.
    let first = domain.run(|request| {
        let small = request.alloc(0u64);
        Ok::<_, Error>(small.is_ok())
    })?;
    println!("{blocks} blocks of 8 KiB; a small one afterwards: {first}");
    // A new domain needs an extent, which may not fit.
    match app.domain("another") {
        Ok(_) | Err(Error::NoRoom) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(app.flush()?)
}
