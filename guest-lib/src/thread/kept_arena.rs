//! An arena that keeps what a request has taken from it until the thread's next request begins.
//!
//! A request that begins has no word to look at for that: `pause_tag` is set so that it looks at the thread first, as few
//! requests do.

use super::Thread;
use super::arena::Level;
use crate::error::Error;

/// What a request needs of its thread more than others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    /// Bytes of the request stack.
    pub(crate) stack: usize,
    /// Bytes of the arena.
    pub(crate) arena: usize,
    pub(crate) keep_arena: bool,
}

/// What the arena has is held as long as this lives.
pub(crate) struct HeldArena<'a> {
    thread: &'a Thread,
    before: Level,
}

impl Drop for HeldArena<'_> {
    fn drop(&mut self) {
        self.thread.arena.hold_again(self.before);
        if self.thread.arena.used() != 0 {
            self.thread.empty_next();
        }
    }
}

impl Thread {
    /// Before a request begins.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`], [`Error::System`].
    pub(crate) fn prepare(&self, needs: Needs) -> Result<(), Error> {
        self.enlarge_stack(needs.stack)?;
        self.empty_arena();
        self.arena.enlarge(needs.arena)?;
        if needs.keep_arena {
            self.arena.check_blocks();
            self.marks.unusual.set(true);
        }
        Ok(())
    }

    /// Frees what the arena has kept; whether it has.
    pub(super) fn empty_arena(&self) -> bool {
        let resumed = self.resume_tag.take();
        if let Some(tag) = resumed {
            self.pause_tag.set(tag);
            self.arena.reset();
        }
        resumed.is_some()
    }

    /// The request is over.
    pub(super) fn end_arena(&self) {
        if self.arena.checks_blocks() {
            self.empty_next();
        } else if self.arena.used() != 0 {
            self.arena.reset();
        }
    }

    /// The next request frees what the arena has.
    fn empty_next(&self) {
        if self.resume_tag.get().is_none() {
            self.resume_tag.set(Some(self.pause_tag.replace(0)));
        }
    }

    /// Holds what the arena has, also while requests begin and end on the thread.
    pub(crate) fn hold_arena(&self) -> HeldArena<'_> {
        let before = self.arena.hold();
        HeldArena {
            thread: self,
            before,
        }
    }
}
