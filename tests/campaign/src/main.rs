//! The fault campaign's command.

use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use vmsrs_campaign::cli::{Cli, Job, RunArgs};
use vmsrs_campaign::plan::Plan;
use vmsrs_campaign::{campaign, guest, matrix, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        None if cli.matrix => every(&cli.run),
        None => campaign::run(&cli.run, &campaign::reports()).map(|report| report.is_good()),
        Some(Job::Against { connect, run }) => against(*connect, run),
        Some(Job::Plan { run }) => plan(run),
        Some(Job::Guest(args)) => guest::run(args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("vmsrs-campaign: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs against a server without the injector; returns whether all promises were kept.
fn against(address: SocketAddr, args: &RunArgs) -> Result<bool> {
    let mut options = args.options(address);
    options.injector = false;
    let outcome = run::run(&options, |_| ())?;
    println!("{}", serde_json::to_string_pretty(&outcome)?);
    Ok(outcome.broken_promises().is_empty())
}

/// Does all nine runs; returns whether all were good.
fn every(args: &RunArgs) -> Result<bool> {
    // Fails once instead of in each of them.
    args.check()?;
    Ok(matrix::run(args, &campaign::reports()))
}

/// Prints the plan; a closed pipe (`plan | head`) is not an error.
fn plan(args: &RunArgs) -> Result<bool> {
    args.check()?;
    match print_plan(args, &mut io::stdout().lock()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(true),
    }
}

/// Prints the plan of the nested test-bed. On this machine's own KVM no memory is poisoned: other kinds take those
/// places.
fn print_plan(args: &RunArgs, output: &mut impl Write) -> io::Result<()> {
    let connections = usize::from(args.connections);
    let plans: Vec<_> = (0..connections)
        .map(|connection| {
            Plan::new(args.seed, connection, connections)
                .with_restarts(!args.no_restarts)
                .with_only(&args.only)
        })
        .collect();
    for place in 0..args.errors {
        let connection = (place % connections as u64) as usize;
        let error = plans[connection].error(place / connections as u64);
        writeln!(
            output,
            "{place} [{connection}] {}: {:?}",
            error.kind.name, error.means
        )?;
    }
    Ok(())
}
