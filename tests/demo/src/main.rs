//! The demonstration's command.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use vmsrs_demo::cli::{Cli, Job, LoadArgs};
use vmsrs_demo::summary::summary;
use vmsrs_demo::{demo, guest, integral};
use vmsrs_ledger::load;
use vmsrs_report::steps::Steps;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        None => demo::run(&cli.load, cli.server),
        Some(Job::Load { connect, load }) => run_load(*connect, load),
        Some(Job::Integral(args)) => integral::run(args),
        Some(Job::Guest(args)) => guest::run(args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("vmsrs-demo: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs the load against a running server; returns whether all promises were kept.
fn run_load(address: SocketAddr, args: &LoadArgs) -> Result<bool> {
    let steps = Steps::new();
    let outcome = load::run(&args.options(address), |progress| {
        steps.count(&guest::count(&progress));
    })?;
    steps.clear();
    print!("{}", summary(&outcome, None));
    for complaint in &outcome.complaints {
        println!("  ! {complaint}");
    }
    let broken = outcome.broken_promises();
    for promise in &broken {
        println!("  BROKEN: {promise}");
    }
    Ok(broken.is_empty())
}
