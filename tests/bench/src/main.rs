//! The cost of requests and errors: boots a guest, measures in it, writes `target/bench/report.json` and prints tables.
//!
//! `vmsrs-bench guest` runs in the guest; its results go over the guest's console to `vmsrs-bench host`, which runs on the KVM
//! host and counts the cost there.

mod baseline;
mod budgets;
mod guest;
mod host;
mod plan;
mod profile;
mod report;
mod sample;
mod servers;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use vmsrs_bed::guest::Plans;
use vmsrs_bed::kmod::Modules;
use vmsrs_bed::{Accelerator, Bed, Event, Job, Kernel, Series, project};
use vmsrs_report::folder;

use crate::plan::{Part, Plan};
use crate::profile::Profiler;
use crate::report::Report;
use crate::sample::Measured;
use crate::servers::Servers;

/// The emulated CPU: `max` without its fast string instructions, which QEMU counts once a byte. A page is then copied in
/// 512 instructions, as the copy would take about as many cycles.
const CPU_MODEL: &str = "max,-erms,-fsrm";

/// Least memory of the KVM host, in MiB.
const LEAST_MEMORY_MIB: u32 = 3072;

/// Most domains that can be asked for: an app has 2^20, and the bench some of its own.
const DOMAINS_MAX: i64 = 1_000_000;

/// Rounds of the measurements for the baseline.
const BASELINE_ROUNDS: u32 = 20;

/// vCPUs of the guests in which flushes and interrupts are counted.
const VCPUS: [u32; 3] = [1, 2, 4];

/// Measure what requests and errors cost, in a guest.
#[derive(Parser)]
#[command(name = "vmsrs-bench", version)]
struct Arguments {
    /// Requests that write to 64 pages; smaller ones are repeated more often.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// What to measure.
    #[arg(long, value_name = "PART,...", value_delimiter = ',')]
    #[arg(default_value = "requests,errors,in-flight,servers,domains,threads")]
    parts: Vec<Choice>,
    /// Most domains to open. Each takes 16 KiB of the window; the report has rows for 1, 1,000, 100,000 and 1,000,000 as far
    /// as this allows, and for this number.
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=DOMAINS_MAX))]
    domains: u32,
    /// Use a KVM host with one CPU whose clock counts instructions. Flushes and interrupts of several vCPUs are counted on
    /// one with more CPUs.
    #[arg(long)]
    deterministic: bool,
    /// Count instructions by function as well, and write tables and flame graphs to target/profile. Domains and several vCPUs
    /// are left out.
    #[arg(long)]
    profile: bool,
    /// Measure the main rows only, by a clock that counts instructions, and compare them with the baseline that is checked in,
    /// or replace it.
    #[arg(long, value_name = "WHAT")]
    baseline: Option<Baseline>,
    /// Give up this many seconds after the KVM host has booted.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    deadline: u64,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Measurements that can be chosen.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// Requests that succeed, and a key-value table.
    Requests,
    /// Requests that fail, and what others notice of them.
    Errors,
    /// Requests beside suspended ones.
    InFlight,
    /// Servers over loopback TCP.
    Servers,
    /// Requests beside other domains.
    Domains,
    /// Flushes and interrupts with several vCPUs and threads.
    Threads,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Baseline {
    Check,
    Renew,
}

#[derive(Subcommand)]
enum Command {
    /// Measure here, in the guest.
    #[command(hide = true)]
    Guest,
    /// Boot guests here, on the KVM host, and count.
    #[command(hide = true)]
    Host(Plans),
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.command {
        Some(Command::Guest) => guest::measure(),
        Some(Command::Host(plans)) => {
            host::run(&plans.kernel, &plans.initramfs, &plans.read::<Plan>()?)
        }
        None => run(&arguments),
    }
}

impl Arguments {
    /// The boots that are timed.
    fn timed(&self) -> Vec<Plan> {
        if self.baseline.is_some() {
            return vec![Plan::new([Part::Main], BASELINE_ROUNDS)];
        }
        let chosen = [
            (Choice::Requests, Part::Requests),
            (Choice::Errors, Part::Errors),
            (Choice::InFlight, Part::InFlight),
            (Choice::Servers, Part::Servers),
        ];
        let parts: Vec<Part> = chosen
            .into_iter()
            .filter(|(choice, _)| self.parts.contains(choice))
            .map(|(_, part)| part)
            .collect();
        let mut plans = Vec::new();
        if !parts.is_empty() {
            plans.push(Plan {
                profile: self.profile,
                ..Plan::new(parts, self.rounds)
            });
        }
        if self.parts.contains(&Choice::Domains) && !self.profile {
            plans.push(Plan::domains(domain_counts(self.domains), self.rounds));
        }
        plans
    }

    /// The boots that are counted alone.
    fn counted(&self) -> Vec<Plan> {
        if !self.parts.contains(&Choice::Threads) || self.profile || self.baseline.is_some() {
            return Vec::new();
        }
        VCPUS
            .map(|vcpus| Plan::new([Part::Steps], self.rounds).vcpus(vcpus))
            .into()
    }

    fn is_deterministic(&self) -> bool {
        self.deterministic || self.profile || self.baseline.is_some()
    }
}

/// Numbers of domains with rows of their own.
fn domain_counts(most: u32) -> Vec<u32> {
    let usual = [1, 1000, 100_000, 1_000_000];
    let below = usual.into_iter().filter(|&count| count < most);
    below.chain([most]).collect()
}

/// What boots are made of.
struct Bench<'a> {
    bed: &'a Bed,
    kernel: &'a Kernel,
    modules: &'a Modules,
    image: &'a Path,
    program: PathBuf,
    vmsrs: PathBuf,
    deadline: Duration,
}

impl Bench<'_> {
    fn job(&self, plans: &[Plan]) -> Result<Job> {
        let memory = plans.iter().map(Plan::host_memory_mib).max().unwrap_or(0);
        let command = ["vmsrs-bench", "host", "vmlinux", "guest.img"];
        Ok(Job::new(command)
            .arg(serde_json::to_string(plans)?)
            .program(&self.program, "vmsrs-bench")
            .program(&self.vmsrs, "vmsrs")
            .file(self.kernel.vmlinux()?, "vmlinux")
            .file(self.image, "guest.img")
            .memory_mib(memory.max(LEAST_MEMORY_MIB))
            .cpu_model(CPU_MODEL)
            .timeout(self.deadline))
    }

    /// Runs a job and gives its measurements.
    fn run(&self, job: &Job, mut profiler: Option<&mut Profiler>) -> Result<Vec<Measured>> {
        let mut measured: Vec<Measured> = Vec::new();
        let mut failed = false;
        let outcome = self.bed.run(job, |event| match event {
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
        Ok(measured)
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let bed = Bed::auto()?;
    let kernel = bed.kernel(Series::V6_1)?;
    let modules = bed.modules(&kernel)?;
    let program = project::own_program();
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("guest.img");
    let (mut base, mut servers) = (bed.image()?, None);
    if arguments.baseline.is_none() && arguments.parts.contains(&Choice::Servers) {
        let built = Servers::build(&bed, folder.path())?;
        base = built.add_to(base);
        servers = Some(built);
    }
    base.modules(["virtio_mmio"])
        .module_file(&modules.driver)
        .binary(&program, "/bin/vmsrs-bench")
        .init("vmsrs-bench guest || echo '@failed'")
        .write(&kernel, &image)?;
    let bench = Bench {
        bed: &bed,
        kernel: &kernel,
        modules: &modules,
        image: &image,
        program,
        vmsrs: project::built("vmsrs")?,
        deadline: Duration::from_secs(arguments.deadline),
    };
    let deterministic = arguments.is_deterministic();
    let mut measured = Vec::new();
    let timed = arguments.timed();
    if !timed.is_empty() {
        let mut job = bench.job(&timed)?;
        if deterministic {
            job = job.deterministic();
        }
        measured = match arguments.profile {
            true => profile(&bench, servers.as_ref(), job)?,
            false => bench.run(&job, None)?,
        };
    }
    match arguments.baseline {
        Some(Baseline::Check) => return baseline::check(&measured),
        Some(Baseline::Renew) => return baseline::renew(&measured),
        None => {}
    }
    let counted = arguments.counted();
    if !counted.is_empty() {
        let vcpus = counted.iter().map(|plan| plan.vcpus).max().unwrap_or(1);
        let job = bench.job(&counted)?.cpus(vcpus);
        measured.extend(bench.run(&job, None)?);
    }
    let accelerator = match deterministic {
        true => Accelerator::Nested,
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

/// Runs the job with the profiler and writes the profile.
fn profile(bench: &Bench<'_>, servers: Option<&Servers>, job: Job) -> Result<Vec<Measured>> {
    let mut profiler = Profiler::new()?;
    let job = job.plugin(profiler.argument());
    let measured = bench.run(&job, Some(&mut profiler))?;
    let files = [
        ("vmsrs-bench", bench.program.clone()),
        ("vmsrs", bench.vmsrs.clone()),
        ("vmsrs.ko", bench.modules.driver.clone()),
    ];
    let files = files
        .into_iter()
        .chain(servers.into_iter().flat_map(Servers::files))
        .map(|(name, file)| (name.to_owned(), file))
        .collect();
    let table = profiler.finish(&measured, &files)?;
    println!("the profile: {}", table.display());
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_domains_end_with_the_most() {
        assert_eq!(domain_counts(1), [1]);
        assert_eq!(domain_counts(10_000), [1, 1000, 10_000]);
        assert_eq!(domain_counts(1_000_000), [1, 1000, 100_000, 1_000_000]);
    }

    #[test]
    fn nothing_is_measured_in_no_rounds_or_domains() {
        let refused = |option, value| Arguments::try_parse_from(["vmsrs-bench", option, value]);
        for (option, value) in [
            ("--rounds", "0"),
            ("--domains", "0"),
            ("--domains", "1000001"),
        ] {
            let error = refused(option, value).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(option), "{error}");
        }
    }

    #[test]
    fn a_profile_has_one_boot() {
        let arguments = Arguments::parse_from(["vmsrs-bench", "--profile"]);
        assert_eq!(arguments.timed().len(), 1);
        assert!(arguments.counted().is_empty());
        let arguments = Arguments::parse_from(["vmsrs-bench"]);
        assert_eq!((arguments.timed().len(), arguments.counted().len()), (2, 3));
    }
}
