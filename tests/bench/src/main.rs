//! The cost of requests and errors: boots a guest, measures in it, writes `target/bench/report.json` and prints tables.
//!
//! `vmsrs-bench guest` runs in the guest; its results go over the guest's console to `vmsrs-bench host`, which runs on the KVM
//! host and counts the cost there.

mod guest;
mod host;
mod load;
mod mark;
mod profile;
mod random;
mod report;
mod sample;
mod servers;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use vmsrs_bed::{Bed, Event, Job, Series, project};
use vmsrs_report::folder;

use crate::profile::Profiler;
use crate::report::Report;
use crate::sample::Measured;
use crate::servers::Servers;

/// The emulated CPU: `max` without its fast string instructions, which QEMU counts once a byte. A page is then copied in
/// 512 instructions, as the copy would take about as many cycles.
const CPU_MODEL: &str = "max,-erms,-fsrm";

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
    /// Count instructions by function as well, and write tables and flame graphs to target/profile.
    #[arg(long)]
    profile: bool,
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
        Some(Part::Guest) => guest::measure(arguments.rounds, arguments.profile),
        Some(Part::Host { kernel, initramfs }) => host::run(kernel, initramfs, arguments.profile),
        None => run(&arguments),
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let program = project::own_program();
    let vmsrs = project::built("vmsrs")?;
    let bed = Bed::auto()?;
    let kernel = bed.kernel(Series::V6_1)?;
    let modules = bed.modules(&kernel)?;
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("guest.img");
    Servers::build(&bed, folder.path())?
        .add_to(bed.image()?)
        .modules(["virtio_mmio"])
        .module_file(&modules.driver)
        .binary(&program, "/bin/vmsrs-bench")
        .init(&format!(
            "vmsrs-bench --rounds {}{} guest || echo '@failed'",
            arguments.rounds,
            if arguments.profile { " --profile" } else { "" },
        ))
        .write(&kernel, &image)?;
    let mut command = vec!["vmsrs-bench", "host", "vmlinux", "guest.img"];
    if arguments.profile {
        command.insert(1, "--profile");
    }
    let mut job = Job::new(command)
        .program(&program, "vmsrs-bench")
        .program(&vmsrs, "vmsrs")
        .file(kernel.vmlinux()?, "vmlinux")
        .file(&image, "guest.img")
        .cpu_model(CPU_MODEL)
        .timeout(Duration::from_secs(arguments.deadline));
    let deterministic = arguments.deterministic || arguments.profile;
    if deterministic {
        job = job.deterministic();
    }
    let mut profiler = match arguments.profile {
        true => Some(Profiler::new()?),
        false => None,
    };
    if let Some(profiler) = &profiler {
        job = job.plugin(profiler.argument());
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
            Err(_)
                if profiler
                    .as_mut()
                    .is_some_and(|profiler| profiler.take(line)) => {}
            Err(_) => eprintln!("result: {line}"),
        },
    })?;
    ensure!(
        !failed && outcome.success() && !measured.is_empty(),
        "the measurements in the guest failed (see above); the job's exit code is {}",
        outcome.code
    );
    if let Some(profiler) = profiler {
        let files = [
            ("vmsrs-bench", program),
            ("vmsrs", vmsrs),
            ("vmsrs.ko", modules.driver),
        ];
        let files = files.map(|(name, file)| (name.to_owned(), file)).into();
        let table = profiler.finish(&measured, &files)?;
        println!("the profile: {}", table.display());
    }
    let accelerator = match deterministic {
        true => vmsrs_bed::Accelerator::Nested,
        false => bed.accelerator(),
    };
    let report = Report::new(
        accelerator.name(),
        kernel.release().to_owned(),
        deterministic,
        measured,
    );
    let folder = project::root().join("target/bench");
    folder::create(&folder)?;
    let path = folder::write_report(&folder, &report)?;
    print!("{}", report.tables());
    println!("report: {}", path.display());
    Ok(())
}
