//! The work on memcached.

mod client;
mod errors;
mod load;
mod suite;
mod throughput;

use anyhow::Result;

use super::server::{Server, Start};
use super::tell;
use crate::plan::Part;

/// Does a part.
pub(super) fn work(part: Part) -> Result<()> {
    match part {
        Part::Suite {
            mode,
            shards,
            only,
            done,
        } => suite::run(mode, shards, &only, &done),
        Part::Throughput { commands, vcpus } => throughput::measure(commands, vcpus),
        Part::Load => load::run(),
        Part::Errors {
            seed, errors, kind, ..
        } => errors::inject(seed, errors, &kind),
        Part::Bugs { each } => errors::attack(each),
    }
}

/// The server's port.
const PORT: u16 = 11211;

/// Starts a server.
fn start(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Server> {
    let fixed = ["-u", "root", "-l", "127.0.0.1", "-U", "0"];
    Server::start(&Start {
        program,
        arguments: &[&fixed, arguments].concat(),
        variables,
        port: PORT,
    })
}
