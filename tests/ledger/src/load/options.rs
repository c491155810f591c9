//! What load to make.

use std::net::SocketAddr;
use std::time::Duration;

/// A load.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server.
    pub address: SocketAddr,
    /// Users, at least one for each connection.
    pub users: usize,
    /// Connections.
    pub connections: usize,
    /// Requests; rounded up to a multiple of `fatal_one_in` for each connection.
    pub requests: usize,
    /// Whether any request is fatal.
    pub faults: bool,
    /// One request in this many is fatal; at least [`SMALLEST_GROUP`](crate::plan::SMALLEST_GROUP).
    pub fatal_one_in: usize,
    /// Seed of the plan: the same one gives the same requests.
    pub seed: u64,
    /// How long one answer may take.
    pub reply_timeout: Duration,
    /// How long all requests together may take.
    pub deadline: Duration,
}
