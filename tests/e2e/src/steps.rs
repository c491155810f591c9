//! Steps of behaviours, each in a process of its own in the guest.

use std::process::Command;

use anyhow::{Context, Result};

use crate::behaviours;

/// Runs a step in this process.
///
/// # Errors
///
/// When there is no such step, and the step's own error.
pub fn run(behaviour: &str, step: &str, argument: &str) -> Result<()> {
    let behaviour = behaviours::find(behaviour)?;
    let (_, function) = behaviour
        .steps
        .iter()
        .find(|(name, _)| *name == step)
        .with_context(|| format!("{} has no step {step}", behaviour.name))?;
    function(argument)
}

/// A command that runs a step in a process of its own.
///
/// # Errors
///
/// When the path of this program is unknown.
pub fn command(behaviour: &str, step: &str, argument: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["guest", behaviour, step, argument]);
    Ok(command)
}
