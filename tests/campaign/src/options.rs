//! What to run.

use std::net::SocketAddr;
use std::time::Duration;

use vmsrs_bed::vault;

use crate::host::Host;
use crate::kind::{Kind, Tools};

/// A run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server.
    pub address: SocketAddr,
    /// Seed of the plan.
    pub seed: u64,
    /// Errors to make.
    pub errors: u64,
    /// Users, at least one for each connection.
    pub users: usize,
    /// Connections.
    pub connections: usize,
    /// Whether the server runs with the injector, and with a supervisor that restarts it.
    pub injector: bool,
    /// Whether errors are made that end the server's process or the guest.
    pub restarts: bool,
    /// The kinds of all errors; none if all kinds are made.
    pub only: Vec<&'static Kind>,
    /// Whether the CPU has protection keys, so that the server guards its variables.
    pub keys: bool,
    /// The virtual machine, where there is one.
    pub host: Option<Host>,
    /// Limit for one answer; a later one is a hang.
    pub reply_timeout: Duration,
    /// Limit for an outage of the server.
    pub outage_limit: Duration,
    /// Limit for the whole run.
    pub deadline: Duration,
}

impl Options {
    /// The tools to make errors with.
    #[must_use]
    pub fn tools(&self) -> Tools {
        Tools {
            injector: self.injector,
            host: self.host.is_some(),
            poison: vault::may_poison(),
        }
    }
}
