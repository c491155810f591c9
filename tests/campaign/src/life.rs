//! One life of the server: a process, from its first answer to its end.

use std::time::Instant;

use crate::kind::Kind;

/// A process of the server.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) boot: String,
    pub(crate) pid: u32,
    /// The error that is meant to end it.
    pub(crate) ending: Option<&'static Kind>,
    /// Errors whose requests had no answer because it ended, as seen by their connections.
    pub(crate) restarted: Vec<&'static Kind>,
    /// Memory outside of domains has been damaged: it may misbehave.
    pub(crate) damaged: bool,
    /// The supervisor has killed it for that reason.
    pub(crate) replaced: bool,
    /// It has ended, or is being killed by the supervisor.
    pub(crate) gone: bool,
    /// Errors whose requests had no answer when it ended.
    pub(crate) suspects: Vec<&'static str>,
    pub(crate) broken: Option<Instant>,
    pub(crate) begun: Instant,
}

impl Life {
    /// A life that starts now.
    pub(crate) fn new(boot: String, pid: u32) -> Self {
        Self {
            boot,
            pid,
            ending: None,
            restarted: Vec::new(),
            damaged: false,
            replaced: false,
            gone: false,
            suspects: Vec::new(),
            broken: None,
            begun: Instant::now(),
        }
    }
}
