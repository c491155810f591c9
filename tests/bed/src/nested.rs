//! Runs a job on a KVM host emulated by QEMU: a Debian kernel as level 1, whose KVM uses the SVM and nested paging that
//! QEMU's software CPU emulates.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::accelerator::Accelerator;
use crate::error::Result;
use crate::image::Image;
use crate::injection;
use crate::job::{Event, Job, Outcome};
use crate::kernel::Kernel;
use crate::monitor::Monitor;
use crate::project;
use crate::qemu::Qemu;
use crate::stream::{self, EXIT_MARK};

/// What a KVM host with taps needs; `kvm_amd` brings `kvm` and what it depends on.
const MODULES: [&str; 2] = ["kvm_amd", "tun"];

/// The second serial port, which carries the result stream.
const RESULTS: &str = "/dev/ttyS1";

/// To the kernel, a CPU that this machine does not run for a while looks like a broken timer (a panic at boot) or like a
/// lockup, so those checks are off.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 mitigations=off \
    no_timer_check nowatchdog rcupdate.rcu_cpu_stall_suppress=1";

/// What the KVM host boots.
struct Boot<'a> {
    kernel: PathBuf,
    initramfs: PathBuf,
    disk: Option<&'a Path>,
}

/// Boots `kernel` with `base` (an image with busybox) and the job in it, or the job's own system, and waits for the job's end.
pub(crate) fn run(
    qemu: &Qemu,
    kernel: &Kernel,
    base: Image,
    job: &Job,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Outcome> {
    let image;
    let boot = match &job.system {
        Some(system) => Boot {
            kernel: system.kernel.clone(),
            initramfs: system.initramfs.clone(),
            disk: Some(&system.disk),
        },
        None => {
            image = pack(kernel, base, job)?;
            Boot {
                kernel: kernel.vmlinuz(),
                initramfs: project::open_file(&image),
                disk: None,
            }
        }
    };
    let plugin = injection::plugin()?;
    let mut process = emulator(qemu, &boot, &project::open_file(&plugin), job);
    let monitor = Monitor::new()?;
    monitor.add_to(&mut process);
    let positions = || format!("\nIts CPUs are at\n{}", monitor.positions());
    stream::run(process, job.limit(), on_event, &positions)
}

/// The level-1 image, in an unnamed file, which is gone with this process.
fn pack(kernel: &Kernel, base: Image, job: &Job) -> Result<File> {
    let mut image = base.modules(MODULES);
    for folder in &job.library_folders {
        image = image.library_folder(folder);
    }
    for file in &job.files {
        let destination = format!("/job/{}", file.name);
        image = match file.program {
            true => image.binary(&file.source, destination),
            false => image.file(&file.source, destination),
        };
    }
    image
        .text(
            "/job/.run",
            0o755,
            job.run_script(Accelerator::Nested.name()),
        )
        .init(&init_script(job))
        .write_unnamed(kernel, &project::build())
}

fn init_script(job: &Job) -> String {
    let pinned = match job.deterministic {
        true => String::new(),
        false => format!("taskset -c 1-{} ", job.cpus),
    };
    // Setting the port again at the end waits until everything has been sent.
    format!(
        r#"
stty -F {RESULTS} raw -echo
cd /job
VMSRS_RESULTS={RESULTS} {pinned}sh ./.run </dev/null
code=$?
echo "{EXIT_MARK}$code" >{RESULTS}
stty -F {RESULTS} raw -echo
"#
    )
}

/// How many CPUs QEMU emulates.
///
/// The job has all but the first. Whenever a CPU restores a floating-point state, QEMU clears the flag IGNNE# of the
/// *first* one, by reading and writing the word that also says whether that one is in a guest and uses its nested page
/// tables, and without a lock (`cpu_clear_ignne()` in `target/i386/tcg/system/fpu_helper.c`, up to 11.1 at least). If
/// the first CPU enters or leaves a guest at this moment, guest or host continues with the other's page tables: a triple
/// fault or a hang of either. On a CPU that runs no guests this does no harm. With one thread for all CPUs
/// ([`Job::deterministic`]) there is no race.
fn emulated_cpus(job: &Job) -> u32 {
    match job.deterministic {
        true => job.cpus,
        false => job.cpus + 1,
    }
}

fn emulator(qemu: &Qemu, boot: &Boot<'_>, injection: &Path, job: &Job) -> Command {
    // The kernel kills QEMU when this thread ends, however it does.
    let mut qemu = qemu.command(&["setpriv", "--pdeathsig", "KILL"]);
    qemu.args([
        "-nodefaults",
        "-no-reboot",
        "-display",
        "none",
        "-cpu",
        &job.cpu_model,
    ]);
    qemu.arg("-plugin").arg(injection);
    if let Some(plugin) = &job.plugin {
        qemu.args(["-plugin", plugin]);
    }
    match job.deterministic {
        true => qemu.args([
            "-accel",
            "tcg,thread=single,tb-size=512",
            "-icount",
            "shift=0,sleep=off",
        ]),
        false => qemu.args(["-accel", "tcg,thread=multi,tb-size=512"]),
    };
    qemu.args([
        "-m",
        &job.memory_mib.to_string(),
        "-smp",
        &emulated_cpus(job).to_string(),
    ]);
    // The console goes to standard error beside QEMU's own messages, the result stream to standard output.
    qemu.args([
        "-chardev",
        "file,id=console,path=/dev/stderr",
        "-serial",
        "chardev:console",
    ]);
    qemu.args([
        "-chardev",
        "file,id=results,path=/dev/stdout",
        "-serial",
        "chardev:results",
    ]);
    qemu.arg("-kernel").arg(&boot.kernel);
    qemu.arg("-initrd").arg(&boot.initramfs);
    let mut arguments = KERNEL_ARGUMENTS.to_owned();
    if let Some(disk) = boot.disk {
        let disk = disk.to_string_lossy().replace(',', ",,");
        let drive = format!("file={disk},format=raw,if=virtio,snapshot=on");
        qemu.args(["-drive", &drive]);
        arguments.push_str(" root=/dev/vda rw");
    }
    qemu.args(["-append", &arguments]);
    qemu
}
