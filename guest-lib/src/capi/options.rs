//! How a request is run.

use crate::thread::arena::ARENA_MAX;
use crate::thread::stack::STACK_MAX;
use crate::{Audit, Options};
use std::time::Duration;

/// Return once the host has sealed the commit.
pub const VMSRS_SEAL: u32 = 1;
/// Audit the whole of every domain before it is committed, not only the pages that the
/// request has written.
pub const VMSRS_AUDIT_WHOLE: u32 = 2;

/// Keep what the request takes from its arena (vmsrs_arena_alloc(), vmsrs_input()) as it is
/// until the thread's next request begins, or the next step: for functions that are called
/// after the commit, and for what follows the request. Behind each block is a red zone then,
/// and a request that has overwritten one fails. Threads that join the request have their
/// arenas emptied as they leave.
pub const VMSRS_KEEP_ARENA: u32 = 4;

/// How a request is run. All zero is the default.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct COptions {
    /// Of `VMSRS_SEAL`, `VMSRS_AUDIT_WHOLE` and `VMSRS_KEEP_ARENA` any, or 0.
    pub flags: u32,
    /// Milliseconds that the request may take; 0 for no limit.
    pub deadline_ms: u32,
    /// Milliseconds to wait for the lock of a domain; 0 for the deadline, or 10 s
    /// if there is none.
    pub lock_timeout_ms: u32,
    /// Bytes of stack that the function needs, at most 1 GiB; 0 for the usual size of
    /// 256 KiB. A thread that has less gets a larger stack, and keeps it.
    pub stack_bytes: u32,
    /// Bytes of arena that the function needs, at most 64 GiB; 0 for the usual
    /// `VMSRS_ARENA_SIZE`. A thread that has less gets a larger arena, and keeps it. It
    /// takes addresses, and memory for what is used.
    pub arena_bytes: u64,
}

impl COptions {
    /// The same for the library; `None` if a flag is unknown, or the stack or the arena too large.
    pub(super) fn read(self) -> Option<Options> {
        if self.flags & !(VMSRS_SEAL | VMSRS_AUDIT_WHOLE | VMSRS_KEEP_ARENA) != 0
            || self.stack_bytes as usize > STACK_MAX
            || self.arena_bytes > ARENA_MAX as u64
        {
            return None;
        }
        let milliseconds = |value: u32| (value != 0).then(|| Duration::from_millis(value.into()));
        Some(Options {
            seal: self.flags & VMSRS_SEAL != 0,
            deadline: milliseconds(self.deadline_ms),
            lock_timeout: milliseconds(self.lock_timeout_ms),
            audit: if self.flags & VMSRS_AUDIT_WHOLE != 0 {
                Audit::Whole
            } else {
                Audit::Written
            },
            stack: (self.stack_bytes != 0).then_some(self.stack_bytes as usize),
            arena: (self.arena_bytes != 0).then_some(self.arena_bytes as usize),
            keep_arena: self.flags & VMSRS_KEEP_ARENA != 0,
        })
    }
}
