//! The measurements in the guest.

mod blocks;
mod counters;
mod domains;
mod errors;
mod in_flight;
mod key_value;
mod load;
mod mark;
mod meter;
mod pages;
mod random;
mod requests;
mod servers;
mod signal;
mod table;
mod threads;

use std::io::{Write, stdin, stdout};

use anyhow::{Context, Result, anyhow};
use vmsrs::{App, Domain, Options};

pub(crate) use self::domains::FILLED;
use self::meter::Meter;
use self::pages::Pages;
use crate::host::{FACT, PLAN};
use crate::plan::{Part, Plan};
use crate::profile::facts::{self, Fact};
use crate::sample::{Sample, What};

/// Measures what the host asks for.
pub(crate) fn measure() -> Result<()> {
    println!("{PLAN}");
    stdout().flush()?;
    let mut line = String::new();
    stdin().read_line(&mut line)?;
    let plan: Plan = serde_json::from_str(&line).context("the host's plan")?;
    if plan.profile {
        tell(&facts::of_guest()?)?;
    }
    // Panics on purpose print nothing.
    std::panic::set_hook(Box::new(|_| {}));
    // SAFETY: no request here lends its locals to other threads.
    let app = unsafe { App::open("bench") }?;
    let meter = Meter {
        counts: !plan.profile,
    };
    // The first one also warms up the console.
    for _ in 0..2 {
        meter.phase(1, |rounds| Ok(Sample::new(What::Nothing, false, rounds)))?;
    }
    let rounds = plan.rounds;
    // What follows uses its frames again; the first use of one costs the host an allocation.
    let pages = || -> Result<Pages> {
        let pages = Pages::new(app, "user")?;
        pages.touch_window(plan.window_mib)?;
        Ok(pages)
    };
    let mut warm = None;
    for part in &plan.parts {
        let pages = match part {
            Part::Main | Part::Requests | Part::Errors | Part::InFlight => match &warm {
                Some(pages) => pages,
                None => warm.insert(pages()?),
            },
            Part::Servers => {
                servers::measure(&meter, rounds)?;
                continue;
            }
            Part::Domains(counts) => {
                domains::measure(&meter, app, counts, rounds)?;
                continue;
            }
            Part::Steps => {
                threads::measure(app, rounds)?;
                continue;
            }
        };
        match part {
            Part::Main => {
                requests::measure_main(&meter, pages, rounds)?;
                errors::measure_main(&meter, app, pages, rounds)?;
                blocks::measure_main(&meter, app, rounds)?;
            }
            Part::Requests => {
                requests::measure(&meter, pages, rounds)?;
                key_value::measure(&meter, app, rounds * 40)?;
                blocks::measure(&meter, app, rounds)?;
            }
            Part::Errors => {
                signal::measure(&meter, rounds)?;
                errors::measure(&meter, app, pages, rounds)?;
            }
            _ => in_flight::measure(&meter, app, pages, rounds)?,
        }
    }
    Ok(())
}

/// Tells the profile facts.
fn tell(facts: &[Fact]) -> Result<()> {
    for fact in facts {
        println!("{FACT}{}", serde_json::to_string(fact)?);
    }
    Ok(())
}

/// Runs a request that succeeds.
fn request(user: &'static Domain, work: impl FnOnce()) -> Result<()> {
    user.run(|_| {
        work();
        Ok::<_, vmsrs::Error>(())
    })
    .map_err(|error| anyhow!("an ordinary request failed: {error:?}"))
}

/// Waits until the host has sealed everything that was committed before.
fn seal(user: &'static Domain) -> Result<()> {
    let options = Options {
        seal: true,
        ..Options::default()
    };
    user.run_with(&options, |request| {
        // A request that writes nothing would not wait.
        request.set_root(request.root::<u8>())
    })
    .map_err(|error| anyhow!("waiting for the host to seal failed: {error:?}"))
}
