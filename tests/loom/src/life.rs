//! A thread's life: it can be cut short between any two accesses that others can see.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// The thread died.
#[derive(Debug)]
pub struct Died;

/// Steps that a thread of a program has left. Does not apply to the kernel's code: a thread that is killed there
/// completes its system call first.
pub struct Life {
    left: Cell<Option<u32>>,
}

impl Life {
    /// A life without an end.
    pub fn long() -> Self {
        Self {
            left: Cell::new(None),
        }
    }

    /// A life that ends before its step number `steps`, counted from 0.
    pub fn short(steps: u32) -> Self {
        Self {
            left: Cell::new(Some(steps)),
        }
    }

    /// One access to memory that the thread shares with others is next.
    pub(crate) fn step(&self) {
        match self.left.get() {
            None => {}
            Some(0) => resume_unwind(Box::new(Died)),
            Some(left) => self.left.set(Some(left - 1)),
        }
    }

    /// Runs the program of the thread to its end, or to the end of its life.
    ///
    /// # Errors
    ///
    /// [`Died`] in the latter case.
    pub fn run<T>(&self, program: impl FnOnce() -> T) -> Result<T, Died> {
        catch_unwind(AssertUnwindSafe(program)).map_err(|payload| match payload.downcast() {
            Ok(died) => *died,
            Err(panic) => resume_unwind(panic),
        })
    }
}
