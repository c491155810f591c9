//! The whole demonstration: builds and boots both servers, runs the load against them, and shows the results.

use std::time::{Duration, Instant};

use anyhow::Result;
use vmsrs_bed::project;
use vmsrs_ledger::load::outcome::Outcome;
use vmsrs_ledger::program::Server;
use vmsrs_report::folder;
use vmsrs_report::steps::Steps;

use crate::cli::LoadArgs;
use crate::guest::Loaded;
use crate::guests::{Clock, Guests, Half};
use crate::report::report;
use crate::summary::summary;

/// Limit of both guests together, which usually take a minute or two.
const LIMIT: Duration = Duration::from_secs(3600);

/// Names of the guests.
const BASELINE: &str = "without VMSRS";
const PROTECTED: &str = "with VMSRS";

/// Runs the demonstration; returns whether all promises were kept.
///
/// # Errors
///
/// When it cannot be completed.
pub fn run(load: &LoadArgs, server: Server) -> Result<bool> {
    let start = Instant::now();
    let steps = Steps::new();
    let folder = project::root().join("target/demo");
    folder::create(&folder)?;

    let guests = Guests::prepare(&steps, &folder, server)?;
    let mut found = guests.run(
        &steps,
        &[
            (BASELINE.to_owned(), Half::Plain, load.clone()),
            (PROTECTED.to_owned(), Half::Protected, load.clone()),
        ],
        LIMIT,
        Clock::Machine,
    )?;
    let (baseline, protected) = (found.take(BASELINE)?, found.take(PROTECTED)?);

    let report = report(
        guests.accelerator(),
        guests.kernel_release(),
        &baseline.outcome,
        &protected.outcome,
    );
    let path = folder::write_report(&folder, &report)?;
    let broken = broken_promises(&baseline.outcome, &protected.outcome);
    show(&baseline, &protected, &broken);
    println!("  the report: {}", path.display());
    println!("  in all {:.0} s", start.elapsed().as_secs_f64());
    Ok(broken.is_empty())
}

/// The broken promises.
fn broken_promises(baseline: &Outcome, protected: &Outcome) -> Vec<String> {
    let mut broken = protected.broken_promises();
    if protected.protection != "full" {
        broken.push(format!(
            "the server ran with protection \"{}\" instead of \"full\"",
            protected.protection
        ));
    }
    if baseline.died.is_none() && baseline.fatal_requests > 0 {
        broken.push("the server without VMSRS survived: there is nothing to compare".to_owned());
    }
    broken
}

fn show(baseline: &Loaded, protected: &Loaded, broken: &[String]) {
    println!("\nThe server without VMSRS\n");
    match &baseline.outcome.died {
        Some(death) => println!(
            "  died at request {} ({}); every user lost the connection and all data",
            death.at_request, death.cause
        ),
        None => println!("  answered {} requests", baseline.outcome.requests),
    }
    println!("\nThe same load against the server with VMSRS\n");
    let incidents = Some(protected.incidents);
    print!("{}", summary(&protected.outcome, incidents));
    for complaint in protected.outcome.complaints.iter().take(10) {
        println!("  ! {complaint}");
    }
    println!();
    for promise in broken {
        println!("  BROKEN: {promise}");
    }
    if broken.is_empty() {
        println!("  Every fatal request failed alone.");
    }
}
