//! A fork leaves the parent's requests alone, and the child can work in the app.

use anyhow::{Result, bail, ensure};
use vmsrs::{App, Domain, Error, RunError};

use crate::fault::try_store;
use crate::host::Guest;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "forked_child_cannot_write_parents_drafts",
    machine: Machine::Usual,
    steps: &[("outside", outside), ("inside", inside)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run("outside", "")?;
    guest.run("inside", "").map(drop)
}

/// Sets the domain's number, and gives the one before.
fn set(domain: &'static Domain, value: u64) -> Result<u64, RunError<Error>> {
    domain.run(|request| {
        let before = request.root::<u64>();
        // SAFETY: the root leads to a number of the domain, which the request holds.
        let old = before.map_or(0, |cell| unsafe { cell.read() });
        match before {
            // SAFETY: as above.
            Some(cell) => unsafe { cell.write(value) },
            None => {
                let cell = request.alloc(value)?;
                request.set_root(Some(cell.into()))?;
            }
        }
        Ok(old)
    })
}

/// Waits for the child, which must end well.
fn reap(child: libc::pid_t) -> Result<()> {
    let mut status = 0;
    // SAFETY: waits for a child of this process.
    let reaped = unsafe { libc::waitpid(child, &raw mut status, 0) };
    ensure!(reaped == child, "the child is waited for");
    ensure!(status == 0, "the child ended with {status:#x}");
    Ok(())
}

/// Ends the child with what its work says.
fn leave(outcome: Result<()>) -> ! {
    if let Err(error) = &outcome {
        eprintln!("in the child: {error:?}");
    }
    // SAFETY: ends the child without running what the parent would run at its end.
    unsafe { libc::_exit(i32::from(outcome.is_err())) }
}

fn outside(_: &str) -> Result<()> {
    // SAFETY: no request here lends its locals to others.
    let app = unsafe { App::open("fork") }?;
    let domain = app.domain("outside")?;
    set(domain, 1)?;
    // SAFETY: the process has one thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        leave((|| {
            ensure!(set(domain, 2)? == 1, "the child sees the parent's commit");
            Ok(())
        })());
    }
    reap(child)?;
    ensure!(set(domain, 3)? == 2, "the parent sees the child's commit");
    Ok(())
}

fn inside(_: &str) -> Result<()> {
    // SAFETY: no request here lends its locals to others.
    let app = unsafe { App::open("fork") }?;
    let domain = app.domain("inside")?;
    let other = app.domain("other")?;
    set(domain, 1)?;
    let cell = domain.root_address();
    let outcome = domain.run(|_| {
        // SAFETY: the root leads to a number of the domain, which the request holds.
        unsafe { cell.cast::<u64>().write(10) };
        // SAFETY: the process has one thread.
        let child = unsafe { libc::fork() };
        if child != 0 {
            reap(child)?;
            // SAFETY: as above.
            let drafted = unsafe { cell.cast::<u64>().read() };
            ensure!(drafted == 10, "the draft is as it was, not {drafted}");
            // SAFETY: as above.
            unsafe { cell.cast::<u64>().write(11) };
        }
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(RunError::Refused(Error::Forked)) => leave(child(other, cell)),
        Err(error) => bail!("{error}"),
    }
    ensure!(set(domain, 12)? == 11, "the parent's request is whole");
    ensure!(set(other, 0)? == 7, "and so is the child's");
    Ok(())
}

/// What the child does while the parent's request goes on.
fn child(other: &'static Domain, cell: *mut u8) -> Result<()> {
    set(other, 7)?;
    // SAFETY: a write to the parent's draft, which must be stopped.
    let fault = unsafe { try_store(cell, 0xff) };
    ensure!(
        fault.is_err_and(|fault| fault.signal == libc::SIGSEGV),
        "the write to the parent's draft is stopped: {fault:?}"
    );
    Ok(())
}
