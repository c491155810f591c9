//! Shows each end-to-end behaviour as a test. The first one to run boots the test-bed for all.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use vmsrs_bed::{Bed, Event, Flavour, Job, Series, project};
use vmsrs_e2e::{behaviours, host};

/// Boots, tests and all: about two minutes in the nested test-bed; the limit is for a busy machine, and for a stock
/// kernel.
const LIMIT: Duration = Duration::from_secs(1200);

/// What each behaviour's test said: nothing, or its error.
type Outcomes = HashMap<String, Option<String>>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let chosen: Vec<String> = behaviours::ALL
        .iter()
        .map(|behaviour| behaviour.name.to_owned())
        .filter(|name| wanted(&arguments, name))
        .collect();
    let chosen = Arc::new(chosen);
    let outcomes: Arc<OnceLock<Result<Outcomes, String>>> = Arc::default();
    let trials = behaviours::ALL
        .iter()
        .map(|behaviour| {
            let (chosen, outcomes) = (chosen.clone(), outcomes.clone());
            Trial::test(behaviour.name, move || {
                let all = outcomes
                    .get_or_init(|| run_bed(&chosen).map_err(|error| format!("{error:?}")))
                    .as_ref()
                    .map_err(|error| Failed::from(error.clone()))?;
                match all.get(behaviour.name) {
                    Some(None) => Ok(()),
                    Some(Some(error)) => Err(Failed::from(error)),
                    None => Err(Failed::from("the test-bed ended before this was tested")),
                }
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Whether the command line asks for the behaviour, by the rules of libtest.
fn wanted(arguments: &Arguments, name: &str) -> bool {
    let matches = |filter: &String| match arguments.exact {
        true => name == filter,
        false => name.contains(filter.as_str()),
    };
    arguments.filter.as_ref().is_none_or(matches) && !arguments.skip.iter().any(matches)
}

/// Packs the images, boots, and collects what the behaviours' tests say.
fn run_bed(names: &[String]) -> Result<Outcomes> {
    let programs = build_programs()?;
    let bed = Bed::auto()?;
    let flavour = Flavour::chosen()?;
    let kernel = bed.guest_kernel(flavour)?;
    let modules = bed.modules(&kernel)?;
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("guest.img");
    let e2e = Path::new(env!("CARGO_BIN_EXE_vmsrs-e2e"));
    let variables = folder.path().join("variables");
    compile_c("variables.c", &programs, &variables)?;
    bed.image()?
        .modules(["virtio_mmio", "virtio_net"])
        .module_file(&modules.driver)
        .module_file_unloaded(&modules.test)
        .module_file_unloaded(&modules.hostile)
        .library_folder(&programs)
        .binary(e2e, "/bin/vmsrs-e2e")
        .binary(&variables, "/bin/variables")
        .init("ifconfig eth0 192.168.77.2 netmask 255.255.255.0 up\nvmsrs-e2e agent 192.168.77.1:7000")
        .write(&kernel, &image)?;
    let mut job = Job::new(["vmsrs-e2e", "host"])
        .program(e2e, "vmsrs-e2e")
        .program(programs.join("vmsrs"), "vmsrs")
        .file(kernel.vmlinux()?, "vmlinux")
        .file(&image, "guest.img")
        .env("RUST_BACKTRACE", "0")
        .env(host::SLOWNESS, flavour.slowness().to_string())
        // Debian's 6.1 for clouds cannot take memory out of use: CONFIG_MEMORY_FAILURE is not set there.
        .host_kernel(Series::V6_12)
        .timeout(LIMIT * flavour.slowness());
    for name in names {
        job = job.arg(name);
    }
    let mut outcomes = Outcomes::new();
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
    // A machine that does not stop cleanly fails every behaviour that was tested on it.
    for (name, error) in &outcomes {
        if let (true, Some(error)) = (name.starts_with("end of "), error) {
            anyhow::bail!("{name}: {error}");
        }
    }
    Ok(outcomes)
}

/// Compiles one of the programs in C against the library that lies in `folder`.
fn compile_c(source: &str, folder: &Path, program: &Path) -> Result<()> {
    let root = project::root();
    let output = Command::new("cc")
        .args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-I"])
        .arg(root.join("guest-lib/include"))
        .arg(root.join("tests/e2e/programs").join(source))
        .arg("-L")
        .arg(folder)
        .args(["-lvmsrs", "-Wl,-z,now", "-o"])
        .arg(program)
        .output()
        .context("start cc; install gcc")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{source}: {errors}");
    Ok(())
}

/// Builds the `vmsrs` command and `libvmsrs.so` with the profile of this test and returns the folder where
/// they lie.
fn build_programs() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_BIN_EXE_vmsrs-e2e"))
        .parent()
        .context("the program lies in a folder")?;
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "-p", "vmsrs-host", "-p", "vmsrs"]);
    cargo.args(["--bin", "vmsrs", "--lib"]);
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let target = folder
        .parent()
        .context("the folder lies in a target folder")?;
    let status = cargo.arg("--target-dir").arg(target).status()?;
    ensure!(
        status.success(),
        "cannot build the vmsrs command and the library"
    );
    Ok(folder.to_path_buf())
}
