//! Runs one step of a behaviour; the guest's side.

use anyhow::{Context, Result};

use crate::behaviours;

/// Runs the step and returns its result as the process's own.
///
/// # Errors
///
/// When there is no such step, and what the step itself says.
pub fn run(behaviour: &str, step: &str, argument: &str) -> Result<()> {
    let behaviour = behaviours::find(behaviour)?;
    let (_, function) = behaviour
        .steps
        .iter()
        .find(|(name, _)| *name == step)
        .with_context(|| format!("{} has no step {step}", behaviour.name))?;
    function(argument)
}
