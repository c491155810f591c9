//! This machine's side: builds, boots, gathers and reports.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use vmsrs_bed::{Bed, Event, Job, Series, project};
use vmsrs_report::folder as results;
use vmsrs_report::steps::Steps;

use crate::build::Builds;
use crate::image;
use crate::plan::{Finding, Mode, Part, Plan, Server};
use crate::report::Report;
use crate::suite;

/// The emulated CPU of measurements: `max` without its fast string instructions, which QEMU counts once a byte.
const CPU_MODEL: &str = "max,-erms,-fsrm";
/// Errors that are injected in a guest.
const PIECE: u64 = 1000;
/// Memory of the KVM host, in MiB.
const MEMORY_MIB: u32 = 4096;

/// What to do.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Parts to run; the report keeps what it has of the others.
    #[arg(long, value_name = "PART,...", value_delimiter = ',')]
    #[arg(default_value = "suite,load,throughput,errors,bugs")]
    parts: Vec<Choice>,
    /// Of the server's own suite, only files whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Builds that the server's own suite is run with.
    #[arg(
        long,
        value_name = "BUILD,...",
        value_delimiter = ',',
        default_value = "plain,protected"
    )]
    builds: Vec<Mode>,
    /// Of the server's own suite, only files that the report does not have yet; of errors, as many as it lacks, with other
    /// seeds.
    #[arg(long)]
    resume: bool,
    /// Shards of the protected server in its suite: with one, its limits are those of the plain one.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=31))]
    shards: u32,
    /// The same seed makes the same errors.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Errors that the injector makes: a thousand in each guest, with seeds that follow.
    #[arg(long, default_value_t = 10_000)]
    errors: u64,
    /// Of the injector's errors, only kinds whose name contains this.
    #[arg(long, default_value = "")]
    kind: String,
    /// Attacks on each bug that is made again.
    #[arg(long, default_value_t = 50)]
    bugs: u64,
    /// Commands of each measurement, for the smallest values.
    #[arg(long, default_value_t = 4000)]
    commands: u32,
    /// Virtual CPUs of the guests that measure, each with as many threads of the server.
    #[arg(
        long,
        value_name = "NUMBER,...",
        value_delimiter = ',',
        default_value = "1,2,4"
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=16))]
    vcpus: Vec<u32>,
    /// Give up this many seconds after the KVM host has booted.
    #[arg(long, value_name = "SECONDS", default_value_t = 14_400)]
    deadline: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Choice {
    /// The server's own test suite, plain and protected.
    Suite,
    /// Tools that are not ours.
    Load,
    /// What commands cost, by a clock that counts instructions.
    Throughput,
    /// The campaign's injector, with a model.
    Errors,
    /// Classes of published vulnerabilities.
    Bugs,
}

/// Runs the parts and writes the report.
pub(crate) fn run(server: Server, arguments: &Arguments) -> Result<()> {
    let folder = project::root().join("target/ports").join(server.name());
    results::create(&folder)?;
    let steps = Steps::new();
    let bed = Bed::auto()?;
    let mut chosen: BTreeSet<Choice> = arguments.parts.iter().copied().collect();
    let attacked = chosen.contains(&Choice::Errors) || chosen.contains(&Choice::Bugs);
    let builds = Builds::make(&bed, &steps, server, &folder, attacked)?;

    if server != Server::Memcached && chosen.remove(&Choice::Suite) {
        run_suite(server, &builds, &folder, arguments)?;
        if chosen.is_empty() {
            return conclude(server, &folder, &builds);
        }
    }
    let step = steps.begin("pack the guest");
    let kernel = bed.kernel(Series::V6_1)?;
    let modules = bed.modules(&kernel)?;
    let mut guest = bed.image()?;
    match server {
        Server::Memcached => {
            guest = image::memcached::add_builds(guest, &builds)?;
            if chosen.contains(&Choice::Suite) {
                guest = image::memcached::add_perl(guest)?;
            }
            if chosen.contains(&Choice::Load) {
                guest = image::memcached::add_tools(guest, &bed)?;
            }
        }
        Server::Mosquitto => guest = image::mosquitto::add_builds(guest, &builds)?,
        Server::Redis => guest = image::redis::add_builds(guest, &builds)?,
    }
    if attacked {
        let injector = vmsrs_campaign::build_injector(builds.place())?;
        guest = guest.binary(injector, "/lib/libinject.so");
    }
    let image = guest
        .modules(["virtio_mmio"])
        .module_file(&modules.driver)
        .module_file_unloaded(&modules.test)
        .binary(project::own_program(), "/bin/vmsrs-ports")
        .init(
            "mount -t debugfs debugfs /sys/kernel/debug\n\
             insmod /lib/modules/vmsrs_stray.ko\n\
             vmsrs-ports guest || echo '@failed'",
        )
        .write_unnamed(&kernel, &folder)?;
    step.end("both builds");

    let mut parts = Vec::new();
    for choice in chosen {
        match choice {
            Choice::Suite => {
                let report = Report::load(&folder, &builds);
                parts.extend(arguments.builds.iter().map(|&mode| Part::Suite {
                    mode,
                    shards: arguments.shards,
                    only: arguments.only.clone(),
                    done: match arguments.resume {
                        true => report.files_done(mode),
                        false => Vec::new(),
                    },
                }));
            }
            Choice::Load => parts.push(Part::Load),
            Choice::Throughput => {
                parts.extend(
                    vcpus(server, &arguments.vcpus).map(|vcpus| Part::Throughput {
                        commands: arguments.commands,
                        vcpus,
                    }),
                )
            }
            Choice::Errors => {
                let (done, next) = match arguments.resume {
                    true => Report::load(&folder, &builds).injected(),
                    false => (0, None),
                };
                let seed = next.unwrap_or(arguments.seed).max(arguments.seed);
                let errors = arguments.errors.saturating_sub(done);
                parts.extend((0..errors.div_ceil(PIECE)).map(|piece| Part::Errors {
                    seed: seed + piece,
                    errors: PIECE.min(errors - piece * PIECE),
                    kind: arguments.kind.clone(),
                    vcpus: server.vcpus(),
                }));
            }
            Choice::Bugs => parts.push(Part::Bugs {
                each: arguments.bugs,
            }),
        }
    }
    for part in parts {
        let mut findings = Vec::new();
        let timed = part.is_timed();
        // Other parts may run meanwhile, so the report is read again each time.
        let save = |begins: bool, findings: &mut Vec<Finding>| {
            let mut report = Report::load(&folder, &builds);
            if begins {
                report.begin(&part);
            }
            findings.drain(..).for_each(|finding| report.add(finding));
            results::write_report(&folder, &report)
        };
        let piecemeal = part.is_piecemeal();
        if piecemeal {
            save(true, &mut findings)?;
        }
        let plan = Plan {
            server,
            part: part.clone(),
        };
        let mut job = Job::new(["vmsrs-ports", "host", "vmlinux", "guest.img"])
            .arg(serde_json::to_string(&[&plan])?)
            .program(project::own_program(), "vmsrs-ports")
            .program(project::built("vmsrs")?, "vmsrs")
            .file(kernel.vmlinux()?, "vmlinux")
            .file(project::open_file(&image), "guest.img")
            .memory_mib(MEMORY_MIB)
            .timeout(Duration::from_secs(arguments.deadline));
        if part.vcpus() == 1 {
            job = job.cpus(1);
        }
        if timed {
            job = job.cpu_model(CPU_MODEL).deterministic();
        }
        let mut failed = false;
        let outcome = bed.run(&job, |event| match event {
            Event::Console(line) => {
                failed |= line.trim() == "@failed";
                eprintln!("{line}");
            }
            Event::Result(line) => match serde_json::from_str::<Finding>(line) {
                Ok(finding) => {
                    eprintln!("{line}");
                    findings.push(finding);
                    if piecemeal && let Err(error) = save(false, &mut findings) {
                        eprintln!("the report: {error:#}");
                    }
                }
                Err(_) => eprintln!("result: {line}"),
            },
        })?;
        ensure!(
            !failed && outcome.success(),
            "the guest failed (see above); the job's exit code is {}",
            outcome.code
        );
        save(!piecemeal, &mut findings)?;
    }
    conclude(server, &folder, &builds)
}

/// Virtual CPUs of the guests that measure: a server with one thread has one.
fn vcpus(server: Server, wanted: &[u32]) -> impl Iterator<Item = u32> {
    let wanted = wanted.iter().copied();
    wanted.filter(move |vcpus| server == Server::Memcached || *vcpus == 1)
}

/// Runs the own suite of a server whose suite is not run in guests.
fn run_suite(server: Server, builds: &Builds, folder: &Path, arguments: &Arguments) -> Result<()> {
    // The port first: the other one is to compare with.
    for &mode in arguments.builds.iter().rev() {
        let mut begins = Some(Part::Suite {
            mode,
            shards: 1,
            only: arguments.only.clone(),
            done: Vec::new(),
        });
        suite::run(server, builds, mode, &arguments.only, &mut |file| {
            eprintln!("{}, {}: {:?}", file.file, mode.name(), file.failures);
            // Other parts may run meanwhile.
            let mut report = Report::load(folder, builds);
            if let Some(part) = begins.take() {
                report.begin(&part);
            }
            report.add(Finding::Suite(file));
            results::write_report(folder, &report).map(drop)
        })?;
    }
    Ok(())
}

/// Prints the report.
fn conclude(server: Server, folder: &Path, builds: &Builds) -> Result<()> {
    let report = Report::load(folder, builds);
    print!("{}", report.summary(server));
    println!("report: {}", folder.join("report.json").display());
    report.check()
}
