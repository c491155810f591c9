//! When the window is full, allocation fails as allocations do, and everything else goes on.

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
    guest.run("fill", "")?;
    let status = guest.control().status()?;
    ensure!(
        status["recovery"]["sealed_frames"].as_u64() > Some(0),
        "the machine lives: {status}"
    );
    Ok(())
}

fn fill(_: &str) -> Result<()> {
    // SAFETY: no request here lends its locals to others.
    let app = unsafe { App::open("window-full") }?;
    let domain = app.domain("user")?;
    // More than the window has.
    let mut blocks = 0u32;
    let full = loop {
        ensure!(blocks < 1000, "8 MiB cannot fit into a window of 7 MiB");
        let result = domain.run(|request| {
            let block = request.domain().allocate(8192, 16)?;
            // SAFETY: a fresh block of that size.
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
        "the allocation fails with out of memory: {full:?}"
    );
    ensure!(blocks > 100, "only {blocks} blocks of 8 KiB fitted");
    // Requests that do not grow go on.
    let first = domain.run(|request| {
        let small = request.alloc(0u64);
        Ok::<_, Error>(small.is_ok())
    })?;
    println!("{blocks} blocks of 8 KiB; a small one afterwards: {first}");
    // A new domain needs an extent of its own.
    match app.domain("another") {
        Ok(_) | Err(Error::OutOfMemory { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(app.flush()?)
}
