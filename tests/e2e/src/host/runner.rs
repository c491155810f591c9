//! Runs behaviours, those of one kind of machine on one guest.

use anyhow::{Context, Result, bail};
use serde_json::json;
use vmsrs_bed::results::tell;

use super::guest::Guest;
use crate::{Behaviour, Machine, behaviours};

/// Runs the behaviours with these names, all if there are none. Each result is a line
/// `{"behaviour": NAME, "error": null or TEXT}`; the end of a machine is one as well.
///
/// # Errors
///
/// When a result cannot be written. A behaviour that fails is a result, not an error.
pub fn run_all(names: &[&str]) -> Result<()> {
    for machine in [
        Machine::Usual,
        Machine::SmallWindow,
        Machine::LargeWindow,
        Machine::Hostile,
        Machine::Restarting,
    ] {
        let chosen = behaviours::ALL.iter().copied().filter(|behaviour| {
            behaviour.machine == machine && (names.is_empty() || names.contains(&behaviour.name))
        });
        let mut guest = None;
        for behaviour in chosen {
            eprintln!("behaviour: {}", behaviour.name);
            report(behaviour.name, test(&mut guest, behaviour))?;
        }
        if let Some(guest) = guest {
            report(&format!("end of {machine:?}"), guest.stop())?;
        }
    }
    Ok(())
}

fn report(name: &str, result: Result<()>) -> Result<()> {
    let error = result.err().map(|error| format!("{error:?}"));
    if let Some(text) = &error {
        eprintln!("{text}");
    }
    Ok(tell(&json!({"behaviour": name, "error": error}))?)
}

/// Runs one behaviour on the running guest, or on a new one if none runs.
///
/// A guest on which a behaviour has failed is given up, so that the next behaviour gets a new one; the error has the
/// ends of its logs.
fn test(slot: &mut Option<Guest>, behaviour: &'static Behaviour) -> Result<()> {
    if slot.is_none() {
        *slot = Some(Guest::boot(behaviour.machine)?);
    }
    let guest = slot.as_mut().context("a guest was booted")?;
    guest.set_behaviour(behaviour.name);
    let result = (behaviour.host)(guest).and_then(|()| guest.check_console());
    if let Err(error) = result {
        let logs = guest.logs();
        *slot = None;
        bail!("{error:?}\n{logs}");
    }
    Ok(())
}
