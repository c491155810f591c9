//! One life of the server: a process, from its first answer to its end.

use std::time::Instant;

use crate::kind::Kind;

/// A process of the server.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) boot: String,
    pub(crate) pid: u32,
    /// The error that is to end it.
    pub(crate) ending: Option<&'static Kind>,
    /// Errors whose requests had no answer because it ended, as far as their connections can tell.
    pub(crate) restarted: Vec<&'static Kind>,
    /// Memory outside of domains has been damaged: it need not work as it should any more.
    pub(crate) damaged: bool,
    /// The supervisor was told to end it for that reason, and found it alive.
    pub(crate) replaced: bool,
    /// It is known to have ended, or is being ended by the supervisor.
    pub(crate) gone: bool,
    /// Errors whose requests had no answer when it ended.
    pub(crate) suspects: Vec<&'static str>,
    pub(crate) broken: Option<Instant>,
    pub(crate) begun: Instant,
}

impl Life {
    /// One that begins now.
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
