//! The work in the guest.

mod errors;
mod memcached;
mod mosquitto;
mod redis;
mod server;

use std::io::{Write, stdin, stdout};

use anyhow::{Context, Result};

use crate::host::{FINDING, PLAN};
use crate::plan::{Finding, Plan, Server};

/// Does what the host asks for.
pub(crate) fn work() -> Result<()> {
    println!("{PLAN}");
    stdout().flush()?;
    let mut line = String::new();
    stdin().read_line(&mut line)?;
    let plan: Plan = serde_json::from_str(&line).context("the host's plan")?;
    match plan.server {
        Server::Memcached => memcached::work(plan.part),
        Server::Mosquitto => mosquitto::work(plan.part),
        Server::Redis => redis::work(plan.part),
    }
}

/// Tells the host.
fn tell(finding: &Finding) -> Result<()> {
    println!("\n{FINDING}{}", serde_json::to_string(finding)?);
    stdout().flush()?;
    Ok(())
}
