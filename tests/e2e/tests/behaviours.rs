//! Shows each end-to-end behaviour as a test. The first one to run boots the test-bed for all that were chosen.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use vmsrs_bed::{Bed, Event, Flavour, Job, Series, project};
use vmsrs_e2e::{Machine, behaviours};

/// Longest run of all behaviours, which takes about two minutes in the nested test-bed. It only ends a run that hangs.
const LIMIT: Duration = Duration::from_secs(3600);

/// What came of each behaviour: nothing, or its error.
type Outcomes = HashMap<String, Option<String>>;

/// What came of a run of the test-bed.
#[derive(Default)]
struct Report {
    outcomes: Outcomes,
    /// Why behaviours without an outcome have none.
    failure: Option<String>,
}

impl Report {
    /// The verdict on one behaviour. A machine that does not stop cleanly fails all that ran on its kind.
    fn verdict(&self, name: &str, machine: Machine) -> Result<(), Failed> {
        match self.outcomes.get(name) {
            Some(None) => {}
            Some(Some(error)) => return Err(error.into()),
            None => {
                let why = self.failure.as_deref();
                return Err(why.unwrap_or("the job ended before this was tested").into());
            }
        }
        match self.outcomes.get(&format!("end of {machine:?}")) {
            Some(Some(error)) => Err(format!("at the end of its machine: {error}").into()),
            _ => Ok(()),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let chosen: Vec<String> = behaviours::ALL
        .iter()
        .map(|behaviour| behaviour.name.to_owned())
        .filter(|name| is_chosen(&arguments, name))
        .collect();
    let chosen = Arc::new(chosen);
    let report: Arc<OnceLock<Report>> = Arc::default();
    let trials = behaviours::ALL
        .iter()
        .map(|behaviour| {
            let (chosen, report) = (chosen.clone(), report.clone());
            Trial::test(behaviour.name, move || {
                let report = report.get_or_init(|| run_bed(&chosen));
                report.verdict(behaviour.name, behaviour.machine)
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Whether the command line asks for the behaviour, by the rules of libtest.
fn is_chosen(arguments: &Arguments, name: &str) -> bool {
    let matches = |filter: &String| match arguments.exact {
        true => name == filter,
        false => name.contains(filter.as_str()),
    };
    arguments.filter.as_ref().is_none_or(matches) && !arguments.skip.iter().any(matches)
}

/// Runs the behaviours in the test-bed.
fn run_bed(names: &[String]) -> Report {
    let mut report = Report::default();
    if let Err(error) = collect(names, &mut report.outcomes) {
        report.failure = Some(format!("{error:?}"));
    }
    report
}

/// Packs the images, boots, and collects the results of the behaviours.
fn collect(names: &[String], outcomes: &mut Outcomes) -> Result<()> {
    let programs = build_programs()?;
    let bed = Bed::auto()?;
    let flavour = Flavour::chosen()?;
    let kernel = bed.guest_kernel(flavour)?;
    let modules = bed.modules(&kernel)?;
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("guest.img");
    let e2e = Path::new(env!("CARGO_BIN_EXE_vmsrs-e2e"));
    project::link_library(&programs.join("libvmsrs.so"), folder.path())?;
    let variables = folder.path().join("variables");
    compile_c(&source_path("variables.c"), &programs, &variables)?;
    let [state, leaving] = ["thread_state", "leaving"].map(|name| folder.path().join(name));
    for program in [&state, &leaving] {
        let name = program.with_extension("c");
        let name = name.file_name().context("a name")?;
        let source = project::root().join("guest-lib/tests/c").join(name);
        compile_c(&source, &programs, program)?;
    }
    let neighbours = compile_neighbours(&programs, folder.path())?;
    let resets = folder.path().join("resets");
    compile_kernel("resets.S", &resets)?;
    let mut guest = bed.image()?;
    for (program, destination) in neighbours {
        guest = guest.binary(program, destination);
    }
    for (name, library) in bed.allocators()? {
        guest = guest.binary(library, format!("/lib/{name}.so"));
    }
    guest
        .modules(["virtio_mmio", "virtio_net"])
        .module_file(&modules.driver)
        .module_file_unloaded(&modules.test)
        .module_file_unloaded(&modules.hostile)
        .library_folder(folder.path())
        .binary(e2e, "/bin/vmsrs-e2e")
        .binary(&variables, "/bin/variables")
        .binary(&state, "/bin/thread-state")
        .binary(&leaving, "/bin/leaving")
        .init("ifconfig eth0 192.168.77.2 netmask 255.255.255.0 up\nvmsrs-e2e agent 192.168.77.1:7000")
        .write(&kernel, &image)?;
    let button_image = folder.path().join("button.img");
    bed.image()?
        .modules(["virtio_mmio", "button", "evdev"])
        .module_file(&modules.driver)
        .init(behaviours::BUTTON_INIT)
        .write(&kernel, &button_image)?;
    let disk_image = folder.path().join("disk-guest.img");
    bed.image()?
        .modules(["virtio_mmio", "virtio_blk", "ext4"])
        .module_file(&modules.driver)
        .init(behaviours::DISK_INIT)
        .write(&kernel, &disk_image)?;
    let share_image = folder.path().join("share-guest.img");
    bed.image()?
        .modules(["virtio_mmio", "virtiofs"])
        .module_file(&modules.driver)
        .init(behaviours::SHARE_INIT)
        .write(&kernel, &share_image)?;
    let storage = bed.program_of("qemu-utils", "qemu-storage-daemon")?;
    let mut job = Job::new(["vmsrs-e2e", "host"])
        .program(e2e, "vmsrs-e2e")
        .program(programs.join("vmsrs"), "vmsrs")
        .file(kernel.vmlinux()?, "vmlinux")
        .file(&image, "guest.img")
        .file(&button_image, "button.img")
        .file(&disk_image, "disk-guest.img")
        .file(&share_image, "share-guest.img")
        .program(storage.path(), "qemu-storage-daemon")
        .file(&resets, "resets")
        .env("RUST_BACKTRACE", "0")
        // Debian's 6.1 for clouds cannot take memory out of use: CONFIG_MEMORY_FAILURE is not set there.
        .host_kernel(Series::V6_12)
        .timeout(LIMIT)
        .slowness(flavour.slowness());
    for folder in storage.library_folders() {
        job = job.library_folder(folder);
    }
    if names.iter().any(|name| name == behaviours::SHARE) {
        job = job.program(bed.virtiofsd()?, "virtiofsd-itself");
    }
    for name in names {
        job = job.arg(name);
    }
    let outcome = bed.run(&job, |event| match event {
        Event::Console(line) => eprintln!("{line}"),
        Event::Result(line) => {
            if let Ok(result) = serde_json::from_str::<serde_json::Value>(line)
                && let Some(name) = result["behaviour"].as_str()
            {
                let error = result["error"].as_str().map(str::to_owned);
                outcomes.insert(name.to_owned(), error);
            }
        }
    })?;
    ensure!(
        outcome.success(),
        "the job ended with code {}:\n{}",
        outcome.code,
        outcome.console.join("\n")
    );
    Ok(())
}

/// Compiles the library's own C tests of what requests do to the rest of their process, with what they load; returns their
/// places in the guest.
fn compile_neighbours(library: &Path, folder: &Path) -> Result<Vec<(PathBuf, String)>> {
    let source = |name: &str| project::root().join(format!("guest-lib/tests/c/{name}.c"));
    let mut compiled = Vec::new();
    for name in ["children", "loader", "allocator", "wild", "process"] {
        let program = folder.join(name);
        compile_c(&source(name), library, &program)?;
        compiled.push((program, format!("/bin/{name}")));
    }
    for sanitizer in behaviours::SANITIZERS {
        let program = folder.join(sanitizer);
        let flag = format!("-fsanitize={sanitizer}");
        let mut cc = cc(&source("sanitized"), library);
        compile(cc.arg(flag), &program)?;
        compiled.push((program, format!("/bin/sanitized-{sanitizer}")));
    }
    for (name, part, file, libraries) in [
        ("loader", "-DPLUGIN", "constructor.so", &[][..]),
        ("allocator", "-DPRELOADED", "allocator.so", &["-lstdc++"]),
    ] {
        let shared = folder.join(file);
        let mut cc = Command::new("cc");
        cc.args(["-O1", "-g", "-shared", "-fPIC", part])
            .arg(source(name))
            .args(libraries);
        compile(&mut cc, &shared)?;
        compiled.push((shared, format!("/lib/{file}")));
    }
    Ok(compiled)
}

/// Compiles a C program against the library in `folder`.
fn compile_c(source: &Path, folder: &Path, program: &Path) -> Result<()> {
    compile(&mut cc(source, folder), program)
}

/// The compiler of C for that.
fn cc(source: &Path, folder: &Path) -> Command {
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-I"])
        .arg(project::root().join("guest-lib/include"))
        .arg(source)
        .arg("-L")
        .arg(folder)
        .args(["-lvmsrs", "-Wl,-z,now"]);
    cc
}

/// Compiles a kernel of this crate, which is loaded at 2 MiB.
fn compile_kernel(source: &str, kernel: &Path) -> Result<()> {
    let mut cc = Command::new("cc");
    cc.args(["-nostdlib", "-static", "-no-pie"])
        .arg("-Wl,-Ttext=0x200000,--build-id=none")
        .arg(source_path(source));
    compile(&mut cc, kernel)
}

fn source_path(name: &str) -> PathBuf {
    project::root().join("tests/e2e/programs").join(name)
}

fn compile(cc: &mut Command, program: &Path) -> Result<()> {
    let output = cc.arg("-o").arg(program).output();
    let output = output.context("start cc; install gcc")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "cannot compile {program:?}: {errors}"
    );
    Ok(())
}

/// Builds the `vmsrs` command and `libvmsrs.so` with the profile of this test; returns their folder.
fn build_programs() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_BIN_EXE_vmsrs-e2e"))
        .parent()
        .context("the program is in a folder")?;
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "-p", "vmsrs-host", "-p", "vmsrs"]);
    cargo.args(["--bin", "vmsrs", "--lib"]);
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let target = folder
        .parent()
        .context("the folder is in a target folder")?;
    let status = cargo.arg("--target-dir").arg(target).status()?;
    ensure!(
        status.success(),
        "cannot build the vmsrs command and the library"
    );
    Ok(folder.to_path_buf())
}
