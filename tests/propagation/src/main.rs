//! Corrupts words of the plain ledger, one in each trial, and reports their effects.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use vmsrs_propagation::place::{Region, Target};
use vmsrs_propagation::report::Report;
use vmsrs_propagation::server::Program;
use vmsrs_propagation::trial;
use vmsrs_report::folder;

/// How long does a corrupted word of a server live, and does another request ever read it?
#[derive(Parser)]
struct Cli {
    /// Number of words to corrupt; the regions take turns.
    #[arg(long, default_value_t = 2000)]
    words: u32,
    /// Seed of the first trial; each next trial adds one.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of requests to follow each word.
    #[arg(long, default_value_t = 200)]
    requests: u32,
    /// Folder for the report.
    #[arg(long, default_value = "target/propagation")]
    output: PathBuf,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let program = Program::build(&cli.output)?;
    let mut words = Vec::new();
    for number in 0..cli.words {
        let region = Region::ALL[number as usize % Region::ALL.len()];
        let seed = cli.seed + u64::from(number);
        let trial = trial::run(&program, Target::Any(region), seed, cli.requests)
            .with_context(|| format!("seed {seed} in the {}", region.name()))?;
        words.push(trial);
    }
    let report = Report::new(cli.seed, cli.requests, &words);
    let path = folder::write_report(&cli.output, &report)?;
    folder::write(&cli.output, "lifetimes.svg", &report.plot()?)?;
    print!("{}", report.tables());
    println!("\nthe report: {}", path.display());
    Ok(())
}
