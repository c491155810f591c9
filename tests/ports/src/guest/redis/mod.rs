//! The work on redis.

mod bugs;
mod client;
mod load;
mod throughput;
mod worker;

use anyhow::{Result, bail};

use super::errors;
use super::server::{Server, Start};
use crate::plan::Part;

/// Does a part.
pub(super) fn work(part: Part) -> Result<()> {
    match part {
        Part::Suite { .. } => bail!("the server's own suite runs on the machine, not in a guest"),
        Part::Throughput { commands, .. } => throughput::measure(commands),
        Part::Load => load::run(),
        Part::Errors {
            seed, errors, kind, ..
        } => errors::inject::<worker::Worker>(seed, errors, &kind),
        Part::Bugs { each } => bugs::attack(each),
    }
}

/// The server's port.
const PORT: u16 = 6379;

/// Starts a server.
fn start(program: &str, variables: &[(&str, &str)]) -> Result<Server> {
    Server::start(&Start {
        program,
        arguments: &["/etc/redis.conf"],
        variables,
        port: PORT,
    })
}
