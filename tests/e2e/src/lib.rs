//! End-to-end behaviours of VMSRS: a stock Debian guest under `vmsrs run`, the driver and the library
//! in it, and tests that look at both sides.
//!
//! Each behaviour is a file in `behaviours/` with two halves: *steps* that run in the guest, each in a
//! process of its own, and a *host* function that calls them in order and looks at the virtual machine
//! from outside. `tests/behaviours.rs` boots the test-bed and shows each behaviour as a test.

pub mod agent;
pub mod behaviours;
mod console;
pub mod fault;
pub mod host;
pub mod hostile;
pub mod limits;
pub mod mapping;
pub mod raw;
pub mod steps;
pub mod stray;

use anyhow::Result;

/// A step in the guest: gets the argument that the host gave, prints what the host shall see.
pub type Step = fn(argument: &str) -> Result<()>;

/// What a behaviour's virtual machine is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// 2 CPUs, a window of 64 MiB.
    Usual,
    /// The same with the smallest window that fits its pool, to fill it.
    SmallWindow,
    /// The usual one, for a behaviour that leaves a device with a strange past.
    Hostile,
    /// The usual one, where a guest that goes down is started again.
    Restarting,
}

/// One behaviour that the whole system must have.
pub struct Behaviour {
    /// The test's name: a sentence of what holds, with underscores.
    pub name: &'static str,
    /// The machine it needs.
    pub machine: Machine,
    /// Steps in the guest by name.
    pub steps: &'static [(&'static str, Step)],
    /// The half on the host: calls steps and looks from outside.
    pub host: fn(&mut host::Guest) -> Result<()>,
}
