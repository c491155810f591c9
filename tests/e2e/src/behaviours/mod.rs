//! The behaviours, one file each.

use anyhow::{Context, Result};

use crate::Behaviour;

mod discard;
mod draft_and_commit;
mod foreign_write;
mod process_death;
mod seal_batches;

/// Every behaviour, in the order of testing.
pub const ALL: &[&Behaviour] = &[
    &draft_and_commit::BEHAVIOUR,
    &discard::BEHAVIOUR,
    &foreign_write::BEHAVIOUR,
    &process_death::BEHAVIOUR,
    &seal_batches::BEHAVIOUR,
];

/// The behaviour with this name.
///
/// # Errors
///
/// When there is none.
pub fn find(name: &str) -> Result<&'static Behaviour> {
    ALL.iter()
        .find(|behaviour| behaviour.name == name)
        .copied()
        .with_context(|| format!("no behaviour is named {name}"))
}
