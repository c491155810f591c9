//! The whole demonstration: builds, boots, attacks both servers, and tells.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use vmsrs_bed::{Bed, Event, Job, Series, project};

use crate::build::{built, compile};
use crate::cli::{LoadArgs, Server};
use crate::guest::{Done, Message};
use crate::machine::{GUEST, PORT};
use crate::outcome::Outcome;
use crate::report::Report;
use crate::steps::{Step, Steps};
use crate::table;

/// Both guests together; the usual time is a fraction of it.
const LIMIT: Duration = Duration::from_secs(600);

/// Names of the guests.
const BASELINE: &str = "without VMSRS";
const PROTECTED: &str = "with VMSRS";

/// Runs the demonstration; whether all promises were kept.
///
/// # Errors
///
/// When it cannot be run to its end.
pub fn run(load: &LoadArgs, server: Server) -> Result<bool> {
    let start = Instant::now();
    let steps = Steps::new();
    let folder = project::root().join("target/demo");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;

    let step = steps.begin("fetch Debian's kernels");
    let detail = steps.clone();
    let bed = Bed::with_progress(Arc::new(move |message| detail.detail(message)))?;
    let kernel = bed.kernel(Series::V6_1)?;
    step.end(kernel.release());

    let step = steps.begin("build the driver");
    let modules = bed.modules(&kernel)?;
    step.end("vmsrs.ko");

    let step = steps.begin("build the servers");
    let servers = Servers::build(&folder, server)?;
    step.end("with and without VMSRS");

    let step = steps.begin("pack the guests");
    let init = format!(
        "ifconfig eth0 {GUEST} netmask 255.255.255.0 up\n\
         ledger {PORT}\n\
         echo \"init: the server ended with code $?\"\n\
         while sleep 60; do :; done\n"
    );
    let (baseline_image, protected_image) = (folder.join("baseline.img"), folder.join("guest.img"));
    let image = bed.image()?.modules(["virtio_mmio", "virtio_net"]);
    let baseline = image.clone().binary(&servers.plain, "/bin/ledger");
    baseline.init(&init).write(&kernel, &baseline_image)?;
    let protected = image
        .module_file(&modules.driver)
        .binary(&servers.protected, "/bin/ledger");
    protected.init(&init).write(&kernel, &protected_image)?;
    step.end("stock Debian, busybox, server");

    let script = [(BASELINE, "baseline.img"), (PROTECTED, "guest.img")]
        .map(|(name, image)| {
            format!(
                "vmsrs-demo guest --name '{name}' --kernel vmlinux --initramfs {image} {}",
                load.to_arguments().join(" ")
            )
        })
        .join(" && ");
    let job = Job::script(script)
        .program(
            std::env::current_exe().context("find this program")?,
            "vmsrs-demo",
        )
        .program(built("vmsrs")?, "vmsrs")
        .file(kernel.vmlinux()?, "vmlinux")
        .file(&baseline_image, "baseline.img")
        .file(&protected_image, "guest.img")
        .timeout(LIMIT);
    let accelerator = bed.accelerator().name();
    let mut watch = Watch::new(&steps, &folder, accelerator)?;
    let ended = bed.run(&job, |event| watch.event(event))?;
    steps.clear();
    let (baseline, protected) = watch.results(ended.code)?;

    let report = Report::new(
        accelerator,
        kernel.release(),
        &baseline.outcome,
        &protected.outcome,
    );
    let path = folder.join("report.json");
    fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")
        .with_context(|| format!("write {}", path.display()))?;
    let broken = broken_promises(&baseline.outcome, &protected.outcome);
    show(&baseline, &protected, &broken);
    println!("  the report: {}", path.display());
    println!("  in all {:.0} s", start.elapsed().as_secs_f64());
    Ok(broken.is_empty())
}

/// What was not as promised.
fn broken_promises(baseline: &Outcome, protected: &Outcome) -> Vec<String> {
    let mut broken = protected.broken_promises();
    if protected.protection != "full" {
        broken.push(format!(
            "the server ran with protection \"{}\" instead of \"full\"",
            protected.protection
        ));
    }
    if baseline.died.is_none() && baseline.fatal_requests > 0 {
        broken.push("the server without VMSRS survived: the comparison shows nothing".to_owned());
    }
    broken
}

fn show(baseline: &Done, protected: &Done, broken: &[String]) {
    println!("\nThe server without VMSRS\n");
    match &baseline.outcome.died {
        Some(death) => println!(
            "  died at request {} ({}); every user lost the connection and all data",
            death.at_request, death.cause
        ),
        None => println!("  answered {} requests", baseline.outcome.requests),
    }
    println!("\nThe same load against the server with VMSRS\n");
    print!("{}", table::table(&protected.outcome));
    if let Some(incidents) = protected.incidents {
        println!("  {:<32}  {incidents}", "incidents recorded by the host");
    }
    for complaint in protected.outcome.complaints.iter().take(10) {
        println!("  ! {complaint}");
    }
    println!();
    for promise in broken {
        println!("  BROKEN: {promise}");
    }
    if broken.is_empty() {
        println!("  Every fatal request cost itself alone.");
    }
}

/// The server, built both ways.
struct Servers {
    plain: PathBuf,
    protected: PathBuf,
}

impl Servers {
    /// Compiles the C server; the Rust one, which `make build` has compiled, stands in for the
    /// protected half where it is wanted.
    fn build(folder: &Path, server: Server) -> Result<Self> {
        let plain = folder.join("ledger-plain");
        compile(&plain, &["-DPLAIN".as_ref()])?;
        let protected = match server {
            Server::Rust => built("ledger-rs")?,
            Server::C => {
                let program = folder.join("ledger");
                let include = project::root().join("guest-lib/include");
                let library = built("libvmsrs.a")?;
                compile(&program, &["-I".as_ref(), &include, &library])?;
                program
            }
        };
        Ok(Self { plain, protected })
    }
}

/// Follows the job on the KVM host.
struct Watch<'a> {
    steps: &'a Steps,
    accelerator: &'static str,
    log: File,
    log_path: PathBuf,
    step: Option<Step<'a>>,
    guest: String,
    done: Vec<Done>,
    trouble: Option<String>,
}

impl<'a> Watch<'a> {
    fn new(steps: &'a Steps, folder: &Path, accelerator: &'static str) -> Result<Self> {
        let log_path = folder.join("console.log");
        Ok(Self {
            steps,
            accelerator,
            log: File::create(&log_path)
                .with_context(|| format!("create {}", log_path.display()))?,
            log_path,
            step: Some(steps.begin(match accelerator {
                "direct" => "start on this machine's KVM",
                _ => "boot a KVM host in QEMU",
            })),
            guest: String::new(),
            done: Vec::new(),
            trouble: None,
        })
    }

    fn event(&mut self, event: Event<'_>) {
        match event {
            // The log is for people who look for the cause of trouble; the run does without it.
            Event::Console(line) => drop(writeln!(self.log, "{line}")),
            Event::Result(line) => match serde_json::from_str(line) {
                Ok(message) => self.message(message),
                Err(_) => drop(writeln!(self.log, "result: {line}")),
            },
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Booting(name) => {
                self.next(self.accelerator, format!("boot the guest {name}"));
                self.guest = name;
            }
            Message::Ready { .. } => {
                self.next(
                    "the server answers",
                    format!("load the server {}", self.guest),
                );
            }
            Message::Progress(progress) => self.steps.counts(&progress),
            Message::Done(done) => {
                let how = match &done.outcome.died {
                    Some(death) => format!("died at request {}", death.at_request),
                    None => format!("answered {} requests", done.outcome.requests),
                };
                self.next(&how, "stop the guest".to_owned());
                self.done.push(*done);
            }
            Message::Trouble(words) => self.trouble = Some(words),
        }
    }

    fn next(&mut self, how: &str, name: String) {
        if let Some(step) = self.step.take() {
            step.end(how);
        }
        self.step = Some(self.steps.begin(name));
    }

    /// The outcomes of both guests.
    fn results(mut self, code: i32) -> Result<(Done, Done)> {
        let log = self.log_path.display();
        if let Some(trouble) = self.trouble {
            bail!("the guest {}: {trouble}; the log is {log}", self.guest);
        }
        let mut take = |name| {
            let place = self.done.iter().position(|done| done.name == name)?;
            Some(self.done.remove(place))
        };
        match (take(BASELINE), take(PROTECTED)) {
            (Some(baseline), Some(protected)) if code == 0 => Ok((baseline, protected)),
            _ => bail!("the run on the KVM host ended with code {code}; the log is {log}"),
        }
    }
}
