//! The whole campaign: builds and boots the guest, makes the errors, and shows the results.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vmsrs_bed::{Flavour, Job, Series, project};
use vmsrs_ledger::arguments::arguments;
use vmsrs_ledger::guest::image::Parts;
use vmsrs_ledger::guest::watch;
use vmsrs_ledger::program::Server;
use vmsrs_report::folder as results;
use vmsrs_report::steps::Steps;

use crate::claim::claim;
use crate::cli::RunArgs;
use crate::guest::{Found, GUEST};
use crate::image;
use crate::kind::Tools;
use crate::report::{Place, Report};
use crate::table;
use crate::view;

/// Time to boot and stop, in addition to the run itself.
const MARGIN: Duration = Duration::from_secs(900);

/// Names of a run's files.
const REPORT: &str = "report.json";
const PAGE: &str = "report.html";
const TRACE: &str = "trace.log";

/// The folder of reports.
#[must_use]
pub fn reports() -> PathBuf {
    project::root().join("target/campaign")
}

/// Runs the campaign and writes its report to `folder`.
///
/// # Errors
///
/// When it cannot be completed; `folder` has no report then.
pub fn run(args: &RunArgs, folder: &Path) -> Result<Report> {
    let start = Instant::now();
    args.check()?;
    // Fails before anything is built. What the guest's host can do is known only there.
    let tools = Tools {
        injector: args.server == Server::C,
        host: true,
        poison: true,
    };
    tools.check(&args.only)?;
    results::create(folder)?;
    let _alone = claim(folder)?;
    remove_old(folder)?;

    let steps = Steps::new();
    let flavour = Flavour::chosen()?;
    let parts = Parts::prepare(&steps, flavour)?;
    let image = image::build(&steps, &parts, folder, args.server)?;
    let mut job = Job::new(["vmsrs-campaign", "guest"]);
    for argument in ["--kernel=vmlinux", "--initramfs=guest.img"] {
        job = job.arg(argument);
    }
    for argument in arguments(args) {
        job = job.arg(argument);
    }
    let job = job
        .program(project::own_program(), "vmsrs-campaign")
        .program(project::built("vmsrs")?, "vmsrs")
        .file(parts.kernel.vmlinux()?, "vmlinux")
        .file(project::open_file(&image), "guest.img")
        // Memory is poisoned, which Debian's cloud kernel of 6.1 does not support.
        .host_kernel(Series::V6_12)
        .timeout(args.deadline() + MARGIN);
    let found = watch::run::<Found>(&parts.bed, &job, &steps, folder);
    // The job has read it: frees its space on the disk.
    drop(image);
    let mut found = found?.take(GUEST)?;
    let trace = std::mem::take(&mut found.outcome.trace);

    let place = Place {
        seed: args.seed,
        vcpus: args.vcpus,
        accelerator: parts.bed.accelerator().name().to_owned(),
        guest_kernel: parts.kernel.release().to_owned(),
        server: args.server.to_string(),
        restarts: !args.no_restarts,
        only: args.only.iter().map(|kind| kind.name.to_owned()).collect(),
        connections: args.connections.into(),
        guest_restarts: found.guest_restarts,
    };
    let report = Report::new(place, found.outcome);
    let path = results::write_report(folder, &report)?;
    let page = results::write(folder, PAGE, &view::page(&report))?;
    println!("\n{}", table::table(&report));
    println!(
        "  the report: {}\n  as a page: {}",
        path.display(),
        page.display()
    );
    println!("  in all {:.0} s", start.elapsed().as_secs_f64());
    if report.is_good() {
        println!("  {}", verdict(&report));
        return Ok(report);
    }
    let trace = results::write(folder, TRACE, &(trace.join("\n") + "\n"))?;
    let quoted = &report.outcome.kernel_complaints_quoted;
    for complaint in report.outcome.complaints.iter().chain(quoted) {
        println!("  ! {complaint}");
    }
    for promise in &report.broken_promises {
        println!("  BROKEN: {promise}");
    }
    println!(
        "  the last requests: {}\n  the same errors again: {}",
        trace.display(),
        args.command(flavour)
    );
    Ok(report)
}

/// Removes the files of an earlier run, which could be taken for this one's.
fn remove_old(folder: &Path) -> Result<()> {
    for name in [REPORT, PAGE, TRACE] {
        if let Err(error) = fs::remove_file(folder.join(name))
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error).with_context(|| format!("remove {name} in {}", folder.display()));
        }
    }
    Ok(())
}

/// The last line of a run that broke no promise.
fn verdict(report: &Report) -> String {
    format!(
        "Every promise was kept: none of {} errors harmed anybody else, and no commit was lost.",
        report.outcome.errors_injected
    )
}
