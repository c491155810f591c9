//! End-to-end behaviours of VMSRS: a stock Debian guest under `vmsrs run` with driver and library in it, and tests that
//! look at both sides.
//!
//! Each behaviour is a file in `behaviours/` with two halves: *steps* that run in the guest, each in a process of its
//! own, and a *host* function that calls them in order and looks at the virtual machine from outside.
//! `tests/behaviours.rs` boots the test-bed and shows each behaviour as a test.

pub mod agent;
pub mod behaviours;
pub mod counter;
pub mod fault;
pub mod host;
pub mod hostile;
pub mod limits;
pub mod mapping;
mod random;
pub mod raw;
pub mod steps;
pub mod stray;

use anyhow::Result;

/// A step in the guest: gets an argument from the host, and prints what the host needs to know.
pub type Step = fn(argument: &str) -> Result<()>;

/// The kind of virtual machine that a behaviour needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// 2 vCPUs, 64 MiB for pool and vault.
    Usual,
    /// The usual one with small pool and vault, to fill them.
    SmallWindow,
    /// The usual one with 256 MiB for pool and vault; also for what the usual one has no apps left for.
    LargeWindow,
    /// The usual one, for a behaviour that leaves the device in an unusual state.
    Hostile,
    /// The usual one, where a guest that goes down is started again.
    Restarting,
}

/// Something that the whole system must do.
pub struct Behaviour {
    /// The test's name: short, says what holds, words joined by underscores.
    pub name: &'static str,
    /// The machine it needs.
    pub machine: Machine,
    /// Steps in the guest by name.
    pub steps: &'static [(&'static str, Step)],
    /// The half on the host: calls steps and looks from outside.
    pub host: fn(&mut host::Guest) -> Result<()>,
}
