//! How a request is run.

use crate::state::Limits;
use crate::thread::Needs;
use std::time::Duration;

/// Time to wait for a lock when nothing else is said, in milliseconds.
const LOCK_TIMEOUT_MS: u32 = 10_000;

/// What the audit looks at in each domain before it is committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Audit {
    /// The pages that the request has written, and all of a domain with at most 64 blocks: what it costs
    /// grows with what was written.
    #[default]
    Written,
    /// All of the domain: what it costs grows with the domain.
    Whole,
}

/// How a request is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Return when the host has sealed the commit, so that it outlives even the guest's kernel.
    pub seal: bool,
    /// How long the request may take; it fails with [`crate::Kind::Deadline`] after that. The driver checks
    /// about every 10 ms; without protection it is not checked.
    pub deadline: Option<Duration>,
    /// How long to wait for a domain's lock; the deadline or 10 s if not given.
    pub lock_timeout: Option<Duration>,
    /// What the audit looks at.
    pub audit: Audit,
    /// Bytes of stack that the function needs, at most 1 GiB: for interpreters and other code that recurses with its
    /// input. A thread whose request stack is smaller gets a larger one, which it keeps; others that join the
    /// request have their own. Not given: what [`crate::set_request_stack_size`] has set.
    pub stack: Option<usize>,
    /// Bytes of arena that the function needs, at most 64 GiB; not given: [`crate::ARENA_SIZE`]. A thread whose arena is
    /// smaller gets a larger one, which it keeps. It takes addresses, and memory for what is used.
    pub arena: Option<usize>,
    /// What the request takes from its arena stays as it is until the thread's next request begins, for what is called after
    /// the commit ([`crate::Request::on_commit`]) and for what follows the request. And behind each block is a red zone: a request that has
    /// overwritten one fails with [`crate::Kind::RedZone`] instead of being committed.
    ///
    /// For the thread that runs the request, or the step; others that join it have their arenas emptied as they leave.
    pub keep_arena: bool,
}

impl Options {
    /// What the thread has to have before the request begins; `None` for what it always has.
    #[inline]
    pub(crate) fn needs(&self) -> Option<Needs> {
        let has_none = self.stack.is_none() && self.arena.is_none() && !self.keep_arena;
        (!has_none).then_some(Needs {
            stack: self.stack.unwrap_or(0),
            arena: self.arena.unwrap_or(0),
            keep_arena: self.keep_arena,
        })
    }

    #[inline]
    pub(crate) fn limits(&self) -> Limits {
        let lock_timeout = self.lock_timeout.or(self.deadline);
        Limits {
            deadline_ms: self.deadline.map_or(0, milliseconds),
            lock_timeout_ms: lock_timeout.map_or(LOCK_TIMEOUT_MS, milliseconds),
            whole_audit: self.audit == Audit::Whole,
        }
    }
}

/// At least 1, since 0 means no limit.
fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX).max(1)
}
