//! The cost of requests and errors: boots a guest, measures in it, writes `target/bench/report.json` and prints tables.
//!
//! `vmsrs-bench guest` runs in the guest; its results go over the guest's console to `vmsrs-bench host`, which runs on the KVM
//! host and counts the cost there.

mod guest;
mod host;
mod report;
mod sample;
mod table;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use vmsrs_bed::{Bed, Event, Job, Series, project};

use crate::report::Report;
use crate::sample::Measured;

/// Measure what requests and errors cost, in a guest.
#[derive(Parser)]
#[command(name = "vmsrs-bench", version)]
struct Arguments {
    /// Requests that write to 64 pages; smaller ones are repeated more often.
    #[arg(long, default_value_t = 50)]
    rounds: u32,
    /// Use a KVM host with one CPU whose clock counts instructions.
    #[arg(long)]
    deterministic: bool,
    /// Give up this many seconds after the KVM host has booted.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    deadline: u64,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Subcommand)]
enum Part {
    /// Measure here, in the guest.
    #[command(hide = true)]
    Guest,
    /// Boot the guest here, on the KVM host, and count.
    #[command(hide = true)]
    Host { kernel: PathBuf, initramfs: PathBuf },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.part {
        Some(Part::Guest) => guest::measure(arguments.rounds),
        Some(Part::Host { kernel, initramfs }) => host::run(kernel, initramfs),
        None => run(&arguments),
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let program = project::own_program();
    let built = std::env::current_exe().context("find this program")?;
    let vmsrs = built.with_file_name("vmsrs");
    ensure!(
        vmsrs.is_file(),
        "{} is missing; build it with `make build-bench`",
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
    let mut job = Job::new(["vmsrs-bench", "host", "vmlinux", "guest.img"])
        .program(&program, "vmsrs-bench")
        .program(vmsrs, "vmsrs")
        .file(kernel.vmlinux()?, "vmlinux")
        .file(&image, "guest.img")
        .timeout(Duration::from_secs(arguments.deadline));
    if arguments.deterministic {
        job = job.deterministic();
    }
    let mut measured: Vec<Measured> = Vec::new();
    let mut failed = false;
    let outcome = bed.run(&job, |event| match event {
        Event::Console(line) => {
            failed |= line.trim() == "@failed";
            eprintln!("{line}");
        }
        Event::Result(line) => match serde_json::from_str(line) {
            Ok(one) => {
                eprintln!("{line}");
                measured.push(one);
            }
            Err(_) => eprintln!("result: {line}"),
        },
    })?;
    ensure!(
        !failed && outcome.success() && !measured.is_empty(),
        "the measurements in the guest failed (see above); the job's exit code is {}",
        outcome.code
    );
    let report = Report {
        accelerator: match arguments.deterministic {
            true => vmsrs_bed::Accelerator::Nested.name(),
            false => bed.accelerator().name(),
        },
        guest_kernel: kernel.release().to_owned(),
        deterministic: arguments.deterministic,
        samples: report::without_measuring(measured),
    };
    let path = write(&report)?;
    print!("{}", report.tables());
    println!("report: {}", path.display());
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
