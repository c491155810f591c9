//! A request that misses its deadline is ended, whatever it is doing.

use std::hint::spin_loop;
use std::time::Duration;

use anyhow::{Result, ensure};
use vmsrs::{App, Domain, Error, Kind, Options, RunError};

use crate::host::Guest;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "a_request_that_misses_its_deadline_is_ended_whatever_it_is_doing",
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
    domain.run(|request| request.alloc(1u8).map(drop))?;
    ensure!(app.info()?.drafts == 0, "no draft is left");
    Ok(())
}
