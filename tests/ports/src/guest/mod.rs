//! The work in the guest.

mod client;
mod errors;
mod load;
mod server;
mod suite;
mod throughput;

use std::io::{Write, stdin, stdout};

use anyhow::{Context, Result};

use crate::host::{FINDING, PLAN};
use crate::plan::{Finding, Part};

/// Does what the host asks for.
pub(crate) fn work() -> Result<()> {
    println!("{PLAN}");
    stdout().flush()?;
    let mut line = String::new();
    stdin().read_line(&mut line)?;
    match serde_json::from_str(&line).context("the host's part")? {
        Part::Suite { mode, shards, only } => suite::run(mode, shards, &only),
        Part::Throughput { commands } => throughput::measure(commands),
        Part::Load => load::run(),
        Part::Errors { seed, errors, kind } => errors::inject(seed, errors, &kind),
        Part::Bugs { each } => errors::attack(each),
    }
}

/// Tells the host.
fn tell(finding: &Finding) -> Result<()> {
    println!("\n{FINDING}{}", serde_json::to_string(finding)?);
    stdout().flush()?;
    Ok(())
}
