//! The end-to-end tests' program: it drives the tests on the KVM host, and is the tests' guest part.
//!
//! `vmsrs-e2e host [NAME ...]` boots guests with `vmsrs run` and tests the behaviours named (all, if
//! none is). `vmsrs-e2e agent ADDRESS` runs in the guest and does what the host asks.
//! `vmsrs-e2e guest BEHAVIOUR PHASE ARGUMENT` is one step of a behaviour in a process of its own.

use anyhow::{Context, Result, bail};
use vmsrs_e2e::{agent, host, steps};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["host", ref names @ ..] => host::run_all(names),
        ["agent", address] => agent::serve(address.parse().context("the address of the host")?),
        ["guest", behaviour, phase, argument] => steps::run(behaviour, phase, argument),
        _ => bail!(
            "usage: vmsrs-e2e host [NAME ...] | agent ADDRESS | guest BEHAVIOUR PHASE ARGUMENT"
        ),
    }
}
