//! The demonstration: load, faults, model and the table.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use vmsrs_demo::cli::{Cli, Job, LoadArgs};
use vmsrs_demo::{load, table};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Some(Job::Load { connect, load }) => run_load(*connect, load),
        Some(Job::Guest(_)) | None => unreachable!(),
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

/// Makes the load against a running server; whether all promises were kept.
fn run_load(address: std::net::SocketAddr, args: &LoadArgs) -> Result<bool> {
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len} requests, {msg}",
    )?);
    let outcome = load::run(&args.options(address), |progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        bar.set_message(format!(
            "{} fatal, {} recovered, {} others failed",
            progress.fatal, progress.recovered, progress.innocent_failed
        ));
    })?;
    bar.finish_and_clear();
    print!("{}", table::table(&outcome));
    for complaint in &outcome.complaints {
        println!("  ! {complaint}");
    }
    let broken = outcome.broken_promises();
    for promise in &broken {
        println!("  BROKEN: {promise}");
    }
    Ok(broken.is_empty())
}
