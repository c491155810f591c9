//! What requests and errors cost: boots a guest, measures in it, writes `target/bench/report.json` and prints a table.
//!
//! `vmsrs-bench guest` is the part that runs in the guest; its results come over the guest's console.

mod guest;
mod sample;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use serde::Serialize;
use vmsrs_bed::{Bed, Event, Job, Series, project};

use crate::sample::{Sample, What};

/// Measure what requests and errors cost, in a guest.
#[derive(Parser)]
#[command(name = "vmsrs-bench", version)]
struct Arguments {
    /// Requests for each measurement; a tenth of that for errors, ten times as many that read only.
    #[arg(long, default_value_t = 200)]
    rounds: u32,
    /// Let the KVM host's clock count instructions, on one CPU.
    #[arg(long)]
    deterministic: bool,
    /// Give up after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    deadline: u64,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Subcommand)]
enum Part {
    /// Measure here, in the guest.
    #[command(hide = true)]
    Guest,
}

/// What is kept of a run.
#[derive(Serialize)]
struct Report {
    accelerator: &'static str,
    guest_kernel: String,
    /// Whether a nanosecond is an instruction: budgets are meant for that clock alone.
    deterministic: bool,
    samples: Vec<Sample>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.part {
        Some(Part::Guest) => guest::measure(arguments.rounds, &mut |sample| {
            if let Ok(line) = sample.line() {
                println!("{line}");
            }
        }),
        None => run(&arguments),
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let program = std::env::current_exe().context("find this program")?;
    let vmsrs = program.with_file_name("vmsrs");
    ensure!(
        vmsrs.is_file(),
        "{} is missing: build it with `make build`",
        vmsrs.display()
    );
    let bed = Bed::auto()?;
    let kernel = bed.kernel(Series::V6_1)?;
    let modules = bed.modules(&kernel)?;
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("guest.img");
    bed.image()?
        .modules(["virtio_mmio"])
        .module_file(&modules.driver)
        .binary(&program, "/bin/vmsrs-bench")
        .init(&format!(
            "vmsrs-bench --rounds {} guest || echo '@failed'",
            arguments.rounds
        ))
        .write(&kernel, &image)?;
    let mut job = Job::new(["vmsrs", "run", "--kernel", "vmlinux"])
        .program(vmsrs, "vmsrs")
        .file(kernel.vmlinux()?, "vmlinux")
        .file(&image, "guest.img")
        .timeout(Duration::from_secs(arguments.deadline));
    for argument in ["--initramfs", "guest.img", "--memory", "512M"] {
        job = job.arg(argument);
    }
    for argument in ["--vcpus", "1", "--window", "64M", "--pool", "2048"] {
        job = job.arg(argument);
    }
    if arguments.deterministic {
        job = job.deterministic();
    }
    let mut samples = Vec::new();
    let mut failed = false;
    let outcome = bed.run(&job, |event| {
        if let Event::Console(line) = event {
            failed |= line.trim() == "@failed";
            match Sample::in_line(line) {
                Some(sample) => samples.push(sample),
                None => eprintln!("{line}"),
            }
        }
    })?;
    ensure!(
        !failed && !samples.is_empty(),
        "the measurements in the guest failed (see above); vmsrs run ended with {}",
        outcome.code
    );
    let report = Report {
        accelerator: match arguments.deterministic {
            true => vmsrs_bed::Accelerator::Nested.name(),
            false => bed.accelerator().name(),
        },
        guest_kernel: kernel.release().to_owned(),
        deterministic: arguments.deterministic,
        samples,
    };
    let path = write(&report)?;
    print!("{}", table(&report));
    println!("the report: {}", path.display());
    Ok(())
}

fn write(report: &Report) -> Result<PathBuf> {
    let folder = project::root().join("target/bench");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let path = folder.join("report.json");
    fs::write(&path, serde_json::to_string_pretty(report)? + "\n")
        .with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// A line for each protected measurement, with the one of the same work without protection beside it.
fn table(report: &Report) -> String {
    let mut text =
        "                       pages     plain ns       with ns     budget ns\n".to_owned();
    for sample in report.samples.iter().filter(|sample| sample.protected) {
        let name = match (sample.what, sample.pages) {
            (What::Request, 0) => "reads",
            (What::Request, _) => "writes",
            (What::Recovery, _) => "error to next request",
        };
        let plain = report.samples.iter().find(|plain| {
            !plain.protected && plain.what == sample.what && plain.pages == sample.pages
        });
        let plain = plain.map_or("-".to_owned(), |plain| format!("{:.0}", plain.nanoseconds));
        // On another clock than that of instructions a budget says nothing.
        let budget = match sample.budget().filter(|_| report.deterministic) {
            Some(budget) => format!("{budget:.0}"),
            None => "-".to_owned(),
        };
        text.push_str(&format!(
            "{name:22} {:5} {plain:>12} {:>13.0} {budget:>13}\n",
            sample.pages, sample.nanoseconds
        ));
    }
    text
}
