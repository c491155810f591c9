//! Errors in requests of memcached.

mod bugs;
mod worker;

use anyhow::Result;

pub(super) use bugs::attack;

/// Makes errors by the campaign's injector.
pub(super) fn inject(seed: u64, errors: u64, only: &str) -> Result<()> {
    crate::guest::errors::inject::<worker::Worker>(seed, errors, only)
}
