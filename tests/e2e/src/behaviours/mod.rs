//! The behaviours, one file each.

use anyhow::{Context, Result};

use crate::Behaviour;

/// Every behaviour, in the order of testing.
pub const ALL: &[&Behaviour] = &[];

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
