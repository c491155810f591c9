//! The whole campaign: builds, boots, makes errors, and tells.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use vmsrs_bed::{Bed, Event, Flavour, Job, Series, project};
use vmsrs_demo::build::{built, compile, compile_c};
use vmsrs_demo::cli::Server;
use vmsrs_demo::log::Log;
use vmsrs_demo::machine::{GUEST, PORT};
use vmsrs_demo::steps::{Step, Steps};

use crate::cli::RunArgs;
use crate::console::SUPERVISOR;
use crate::guest::{Done, Message, STATE_PORT, SUPERVISOR_PORT};
use crate::report::{Place, Report};
use crate::run::Progress;
use crate::table;
use crate::view;

/// Between two lines with counts where there is no terminal.
const TELL_EVERY: Duration = Duration::from_secs(30);
/// Booting and stopping, besides the run itself.
const MARGIN: Duration = Duration::from_secs(300);

/// Names of the files that a run leaves.
const REPORT: &str = "report.json";
const PAGE: &str = "report.html";
const TRACE: &str = "trace.log";

/// The folder of reports.
#[must_use]
pub fn reports() -> PathBuf {
    project::root().join("target/campaign")
}

/// Keeps the folder for one run at a time, until the file is closed: also by the end of the process.
fn claim(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another campaign runs in {}; wait for its end, or use another clone",
            folder.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("lock {}", path.display()))
        }
    }
}

/// Runs the campaign: its report, which lies in `folder` then.
///
/// # Errors
///
/// When it cannot be run to its end; there is no report in `folder` then.
pub fn run(args: &RunArgs, folder: &Path) -> Result<Report> {
    let start = Instant::now();
    args.check()?;
    if let Some(kind) = args.only
        && let Some(wants) = kind.wants(args.server == Server::C, true, true)
    {
        // Before all is built and booted. What the guest's host is like, is seen there.
        bail!("errors of the kind '{}' want {wants}", kind.name);
    }
    let steps = Steps::new();
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let _alone = claim(folder)?;

    // Nobody shall take those of an earlier run for this one's.
    for name in [REPORT, PAGE, TRACE] {
        if let Err(error) = fs::remove_file(folder.join(name))
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error).with_context(|| format!("remove {name} in {}", folder.display()));
        }
    }
    let flavour = Flavour::chosen()?;

    let step = steps.begin("fetch Debian's kernels");
    let detail = steps.clone();
    let bed = Bed::with_progress(Arc::new(move |message| detail.detail(message)))?;
    let kernel = bed.guest_kernel(flavour)?;
    step.end(kernel.release());

    let step = steps.begin("build the driver");
    let modules = bed.modules(&kernel)?;
    step.end("vmsrs.ko, vmsrs_stray.ko");

    let step = steps.begin("build the server and the injector");
    let programs = Programs::build(folder, args.server)?;
    step.end("libvmsrs.so below libinject.so");

    let step = steps.begin("pack the guest");
    let mut image = bed
        .image()?
        .modules(["virtio_mmio", "virtio_net"])
        .module_file(&modules.driver)
        .module_file_unloaded(&modules.test)
        .library_folder(&programs.libraries)
        .binary(&programs.server, "/bin/ledger");
    if let Some(injector) = &programs.injector {
        image = image.binary(injector, "/lib/libinject.so");
    }
    let image = image
        .text("/bin/state", 0o755, STATE)
        .text("/bin/end-process", 0o755, END_PROCESS)
        .init(&init(programs.injector.is_some()))
        .write_unnamed(&kernel, folder)?;
    step.end("stock Debian, busybox, server");

    let mut job = Job::new(["vmsrs-campaign", "guest"]);
    for argument in ["--kernel", "vmlinux", "--initramfs", "guest.img"] {
        job = job.arg(argument);
    }
    for argument in args.to_arguments() {
        job = job.arg(argument);
    }
    let job = job
        .program(project::own_program(), "vmsrs-campaign")
        .program(built("vmsrs")?, "vmsrs")
        .file(kernel.vmlinux()?, "vmlinux")
        .file(project::open_file(&image), "guest.img")
        // Memory is poisoned; Debian's 6.1 for clouds knows nothing of broken memory.
        .host_kernel(Series::V6_12)
        .timeout(args.deadline() + MARGIN);
    let accelerator = bed.accelerator().name();
    let mut watch = Watch::new(&steps, folder, accelerator)?;
    let ended = bed.run(&job, |event| watch.event(event));
    // The job has read it; its room is not needed any more.
    drop(image);
    steps.clear();
    let done = watch.result(ended?.code)?;

    let place = Place {
        seed: args.seed,
        vcpus: args.vcpus,
        accelerator: accelerator.to_owned(),
        guest_kernel: kernel.release().to_owned(),
        server: match args.server {
            Server::C => "c".to_owned(),
            Server::Rust => "rust".to_owned(),
        },
        restarts: !args.no_restarts,
        only: args.only.map(|kind| kind.name.to_owned()),
        connections: args.connections.into(),
        guest_restarts: done.guest_restarts,
    };
    let report = Report::new(&place, &done.outcome);
    let path = folder.join(REPORT);
    fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")
        .with_context(|| format!("write {}", path.display()))?;
    println!("\n{}", table::table(&report));
    let page = folder.join(PAGE);
    fs::write(&page, view::page(&report)).with_context(|| format!("write {}", page.display()))?;
    println!(
        "  the report: {}\n  to look at: {}",
        path.display(),
        page.display()
    );
    println!("  in all {:.0} s", start.elapsed().as_secs_f64());
    if report.broken_promises.is_empty() {
        println!("  {}", verdict(&report));
    } else {
        let trace = folder.join(TRACE);
        fs::write(&trace, done.outcome.trace.join("\n") + "\n")
            .with_context(|| format!("write {}", trace.display()))?;
        let quoted = &report.kernel_complaints_quoted;
        for complaint in done.outcome.complaints.iter().chain(quoted) {
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
    }
    Ok(report)
}

/// What a run says at last that broke no promise.
fn verdict(report: &Report) -> String {
    format!(
        "Every promise was kept: none of {} errors harmed anybody else, and no commit was lost.",
        report.errors_injected
    )
}

/// What the guest does: a supervisor that starts the server anew whenever it ends, and beside it a
/// port that tells what the processes do.
fn init(injector: bool) -> String {
    let preload = match injector {
        true => "LD_PRELOAD=/lib/libinject.so ",
        false => "",
    };
    format!(
        "ifconfig eth0 {GUEST} netmask 255.255.255.0 up\n\
         mount -t debugfs debugfs /sys/kernel/debug\n\
         insmod /lib/modules/vmsrs_stray.ko\n\
         echo 1 >/proc/sys/kernel/sysrq\n\
         (while :; do nc -l -p {STATE_PORT} -e /bin/state; done) >/dev/null 2>&1 &\n\
         (while :; do nc -l -p {SUPERVISOR_PORT} -e /bin/end-process; done) >/dev/null 2>&1 &\n\
         # The kernel's log is written to the console in whole lines, whatever programs write there.\n\
         echo on >/proc/sys/kernel/printk_devkmsg\n\
         boot=$(cat /proc/sys/kernel/random/boot_id)\n\
         while :; do\n\
         \t{preload}ledger {PORT} &\n\
         \tserver=$!\n\
         \twait $server\n\
         \techo \"{SUPERVISOR}$server of boot $boot ended with code $?\" >/dev/kmsg\n\
         done\n"
    )
}

/// Ends the process whose number it reads, and says whether it was there.
const END_PROCESS: &str = r#"#!/bin/sh
read process
if kill -9 "$process"; then echo ended; else echo gone; fi
"#;

const STATE: &str = r#"#!/bin/sh
ps -o pid,stat,time,comm
for task in /proc/[0-9]*/task/[0-9]*; do
	[ -s "$task/cmdline" ] || continue
	echo "$task $(cat $task/comm) $(cat $task/wchan) syscall: $(cat $task/syscall)"
	cat $task/stack
done
echo l >/proc/sysrq-trigger
dmesg | tail -n 100
"#;

/// Sources of the injector.
const INJECTOR: [&str; 9] = [
    "calls.c",
    "errors.c",
    "exception.cc",
    "line.c",
    "memory.c",
    "moment.c",
    "real.c",
    "requests.c",
    "threads.c",
];

/// What is built for the guest.
struct Programs {
    server: PathBuf,
    injector: Option<PathBuf>,
    /// The folder with `libvmsrs.so`.
    libraries: PathBuf,
}

impl Programs {
    /// Compiles the C server against the shared library, so that the injector can stand between
    /// them. The Rust server, which `make build` has compiled, has the library in it.
    fn build(folder: &Path, server: Server) -> Result<Self> {
        let library = built("libvmsrs.so")?;
        let libraries = library.parent().unwrap_or(Path::new("/")).to_path_buf();
        let root = project::root();
        let include = root.join("guest-lib/include");
        let (server, injector) = match server {
            Server::Rust => (built("ledger-rs")?, None),
            Server::C => {
                let program = folder.join("ledger");
                // By name, not by path: it lies elsewhere in the guest.
                compile(
                    &program,
                    &[
                        "-I".as_ref(),
                        &include,
                        "-L".as_ref(),
                        &libraries,
                        "-lvmsrs".as_ref(),
                        // So that requests do not change its variables.
                        "-Wl,-z,now".as_ref(),
                    ],
                )?;
                let injector = folder.join("libinject.so");
                compile_c(
                    &INJECTOR.map(|name| Path::new("tests/campaign/inject").join(name)),
                    &injector,
                    &[
                        "-lstdc++".as_ref(),
                        "-fno-builtin".as_ref(),
                        "-fPIC".as_ref(),
                        "-shared".as_ref(),
                        "-fvisibility=hidden".as_ref(),
                        "-I".as_ref(),
                        &include,
                        "-I".as_ref(),
                        &root.join("guest-kmod"),
                    ],
                )?;
                (program, Some(injector))
            }
        };
        Ok(Self {
            server,
            injector,
            libraries,
        })
    }
}

/// The counts, how fast they grow, and how long it will take at that rate.
fn words(progress: &Progress, elapsed: Duration) -> String {
    let rate = progress.injected as f64 / elapsed.as_secs_f64().max(0.001);
    let left = progress.total.saturating_sub(progress.injected) as f64;
    let left = match progress.injected {
        0 => "time left unknown".to_owned(),
        _ => format!("{:.0} min left", (left / rate / 60.0).ceil()),
    };
    format!(
        "{} requests lost, {} others harmed, {} restarts; {rate:.1} a second, {left}",
        progress.lost, progress.harmed, progress.restarts
    )
}

/// Follows the job on the KVM host.
struct Watch<'a> {
    steps: &'a Steps,
    bar: ProgressBar,
    log: Log,
    step: Option<Step<'a>>,
    done: Option<Done>,
    trouble: Option<String>,
    /// Since when errors are made.
    begun: Instant,
    /// When the counts were last told in a line of their own.
    told: Instant,
}

impl<'a> Watch<'a> {
    fn new(steps: &'a Steps, folder: &Path, accelerator: &str) -> Result<Self> {
        let name = format!("boot the guest ({accelerator})");
        Ok(Self {
            steps,
            bar: ProgressBar::hidden(),
            log: Log::create(folder)?,
            step: Some(steps.begin(name)),
            done: None,
            trouble: None,
            begun: Instant::now(),
            told: Instant::now(),
        })
    }

    fn event(&mut self, event: Event<'_>) {
        if let Some(message) = self.log.message(event) {
            self.message(message);
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Ready { .. } => {
                if let Some(step) = self.step.take() {
                    step.end("the server answers");
                }
                self.steps.clear();
                (self.begun, self.told) = (Instant::now(), Instant::now());
                self.bar = ProgressBar::new(0);
                let style = ProgressStyle::with_template(
                    "  {bar:30} {pos}/{len} errors, {msg} [{elapsed}]",
                );
                self.bar
                    .set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            }
            Message::Progress(progress) => self.counts(&progress),
            Message::Done(done) => {
                self.bar.finish_and_clear();
                self.done = Some(*done);
            }
            Message::Trouble(words) => self.trouble = Some(words),
        }
    }

    fn counts(&mut self, progress: &Progress) {
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.injected);
        let words = words(progress, self.begun.elapsed());
        self.bar.set_message(words.clone());
        // Whoever reads a log wants to know, too, that it goes on.
        if self.bar.is_hidden() && self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            eprintln!("  {}/{} errors, {words}", progress.injected, progress.total);
        }
    }

    fn result(self, code: i32) -> Result<Done> {
        self.bar.finish_and_clear();
        let log = self.log.path().display();
        match (self.done, self.trouble) {
            (Some(done), None) if code == 0 => Ok(done),
            (_, Some(trouble)) => bail!("{trouble}; the log is {log}"),
            _ => bail!("the run on the KVM host ended with code {code}; the log is {log}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_has_a_rate_and_the_time_left() {
        let mut progress = Progress {
            total: 10_000,
            ..Progress::default()
        };
        assert!(words(&progress, Duration::from_secs(9)).contains("time left unknown"));
        progress.injected = 400;
        let words = words(&progress, Duration::from_secs(100));
        assert!(words.ends_with("4.0 a second, 40 min left"), "{words}");
    }

    #[test]
    fn a_folder_is_one_runs_at_a_time() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tmp/claimed");
        fs::create_dir_all(&folder).unwrap();
        let first = claim(&folder).unwrap();
        let refused = claim(&folder).unwrap_err().to_string();
        assert!(
            refused.starts_with("another campaign runs in "),
            "{refused}"
        );
        drop(first);
        claim(&folder).unwrap();
    }
}
