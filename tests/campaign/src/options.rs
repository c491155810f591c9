//! What to run.

use std::net::SocketAddr;
use std::time::Duration;

use vmsrs_bed::window;

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
    /// Whether the server runs below the injector and a supervisor that starts it anew.
    pub injector: bool,
    /// Whether errors are made that end the server's process or the guest.
    pub restarts: bool,
    /// The kind of all errors, if not all kinds are made.
    pub only: Option<&'static Kind>,
    /// Whether the injector's server has protection keys, and so guards its variables.
    pub keys: bool,
    /// The virtual machine, where there is one.
    pub host: Option<Host>,
    /// How long one answer may take before it counts as a hang.
    pub reply_timeout: Duration,
    /// How long a server may be away.
    pub outage_limit: Duration,
    /// How long all may take.
    pub deadline: Duration,
}

impl Options {
    /// What errors can be made with.
    #[must_use]
    pub fn tools(&self) -> Tools {
        Tools {
            injector: self.injector,
            host: self.host.is_some(),
            poison: window::may_poison(),
        }
    }
}
