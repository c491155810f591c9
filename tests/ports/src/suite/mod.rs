//! Servers' own tests that run on this machine, without a device: they need languages that guests do not have.

mod mosquitto;
mod redis;

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vmsrs_bed::{patience, project};

use crate::build::Builds;
use crate::plan::{Mode, Server, SuiteFile};

/// Runs the tests of a build, those whose name contains `only`.
pub(crate) fn run(
    server: Server,
    builds: &Builds,
    mode: Mode,
    only: &str,
    found: &mut dyn FnMut(SuiteFile) -> Result<()>,
) -> Result<()> {
    match server {
        Server::Redis => redis::run(builds, mode, only, found),
        _ => mosquitto::run(builds, mode, only, found),
    }
}

/// How a program has ended: well, or not, or not in time; and what it has printed.
struct Outcome {
    success: Option<bool>,
    text: String,
}

/// Runs a program of the tests, without a device, and ends all that it has started. Its limit is scaled by [`patience`].
fn run_program(command: &mut Command, place: &Path, limit: Duration) -> Result<Outcome> {
    let log = place.join("log");
    let output = File::create(&log)?;
    let library = project::built("libvmsrs.so")?;
    let mut process = command
        .current_dir(place)
        .env("VMSRS_DEVICE", "none")
        .env(
            "LD_LIBRARY_PATH",
            library.parent().unwrap_or(Path::new("/")),
        )
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    let (start, limit) = (Instant::now(), patience::scaled(limit));
    let success = loop {
        if let Some(status) = process.try_wait()? {
            break Some(status.success());
        }
        if start.elapsed() > limit {
            break None;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let group = i32::try_from(process.id())?;
    // SAFETY: sends a signal to the process group that was made for the program.
    unsafe { libc::kill(-group, libc::SIGKILL) };
    process.wait()?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    Ok(Outcome { success, text })
}
