//! A fork does not affect the parent's requests, and the child can use the app.

use anyhow::{Result, bail, ensure};
use vmsrs::{App, Domain, Error, RunError};

use crate::fault::try_store;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "forked_child_cannot_write_parents_drafts",
    machine: Machine::Usual,
    steps: &[("outside", outside), ("inside", inside)],
    host: |guest| guest.run_steps(&["outside", "inside"]),
};

/// Sets the domain's number and returns the previous one.
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

/// Waits for the child, which must succeed.
fn reap(child: libc::pid_t) -> Result<()> {
    let mut status = 0;
    // SAFETY: waits for a child of this process.
    let reaped = unsafe { libc::waitpid(child, &raw mut status, 0) };
    ensure!(reaped == child, "waitpid returned {reaped}");
    ensure!(status == 0, "the child ended with {status:#x}");
    Ok(())
}

/// Ends the child with the outcome of its work.
fn exit_child(outcome: Result<()>) -> ! {
    if let Err(error) = &outcome {
        eprintln!("in the child: {error:?}");
    }
    // SAFETY: ends the child without the parent's exit handlers.
    unsafe { libc::_exit(i32::from(outcome.is_err())) }
}

fn outside(_: &str) -> Result<()> {
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("fork") }?;
    let domain = app.domain("outside")?;
    set(domain, 1)?;
    // SAFETY: the process has one thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        exit_child((|| {
            ensure!(
                set(domain, 2)? == 1,
                "the child does not see the parent's commit"
            );
            Ok(())
        })());
    }
    reap(child)?;
    ensure!(
        set(domain, 3)? == 2,
        "the parent does not see the child's commit"
    );
    Ok(())
}

fn inside(_: &str) -> Result<()> {
    // SAFETY: no request here shares its locals with other threads.
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
            ensure!(drafted == 10, "the draft has changed to {drafted}");
            // SAFETY: as above.
            unsafe { cell.cast::<u64>().write(11) };
        }
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(RunError::Refused(Error::Forked)) => exit_child(child(other, cell)),
        Err(error) => bail!("{error}"),
    }
    ensure!(
        set(domain, 12)? == 11,
        "the parent's request was not committed as a whole"
    );
    ensure!(set(other, 0)? == 7, "the child's request was not committed");
    Ok(())
}

/// What the child does while the parent's request is running.
fn child(other: &'static Domain, cell: *mut u8) -> Result<()> {
    set(other, 7)?;
    // SAFETY: a write to the parent's draft, which must fault.
    let fault = unsafe { try_store(cell, 0xff) };
    ensure!(
        fault.is_err_and(|fault| fault.signal == libc::SIGSEGV),
        "the write to the parent's draft was not stopped: {fault:?}"
    );
    Ok(())
}
