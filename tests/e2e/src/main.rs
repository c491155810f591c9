//! The program of the end-to-end tests, on the KVM host and in the guest.
//!
//! `vmsrs-e2e host [NAME ...]` boots guests with `vmsrs run` and tests the named behaviours, or all.
//! `vmsrs-e2e agent ADDRESS` runs in the guest and does what the host asks for.
//! `vmsrs-e2e guest BEHAVIOUR STEP ARGUMENT` is one step of a behaviour in a process of its own.

use anyhow::{Context, Result, bail};
use vmsrs_e2e::{agent, host, steps};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["host", ref names @ ..] => host::run_all(names),
        ["agent", address] => agent::serve(address.parse().context("the host's address")?),
        ["guest", behaviour, step, argument] => steps::run(behaviour, step, argument),
        _ => bail!(
            "usage: vmsrs-e2e host [NAME ...] | agent ADDRESS | guest BEHAVIOUR STEP ARGUMENT"
        ),
    }
}
