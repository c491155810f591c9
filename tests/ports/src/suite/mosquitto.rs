//! mosquitto's own tests, on this machine and without a device: they need Python, which guests do not have.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::run_program;
use crate::build::Builds;
use crate::plan::{Mode, SuiteFile};

/// How long a file may take, scaled by what the machine takes longer; the longest takes half a minute.
const LIMIT: Duration = Duration::from_secs(180);
/// The first port that tests use; each build has as many.
const PORTS: u16 = 21_000;
/// The program that Debian's version of the tests starts.
const INSTALLED: &str = "/usr/sbin/mosquitto";
/// Files that do not apply, by how they begin.
const SKIPPED: [(&str, &str); 5] = [
    ("06-bridge", "built without bridges"),
    ("08-", "built without TLS"),
    ("14-dynsec", "built without cJSON"),
    (
        "01-bad-initial-packets",
        "needs a Python module that Debian does not install",
    ),
    ("09-pwfile-parse-invalid", "built without TLS"),
];

/// Runs the tests of a build, those whose name contains `only`.
pub(super) fn run(
    builds: &Builds,
    mode: Mode,
    only: &str,
    found: &mut dyn FnMut(SuiteFile) -> Result<()>,
) -> Result<()> {
    let folder = builds.place().join(format!("suite-{}", mode.name()));
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(folder.join("src"))?;
    let plain = builds.folder(Mode::Plain);
    for part in ["test", "include", "plugins"] {
        let status = Command::new("cp")
            .arg("-a")
            .arg(plain.join(part))
            .arg(&folder)
            .status()?;
        ensure!(status.success(), "copy {part}");
    }
    let program = folder.join("src/mosquitto");
    fs::copy(builds.folder(mode).join("src/mosquitto"), &program)?;
    for tests in ["test", "test/broker"] {
        point_to(&folder.join(tests), &program.display().to_string())?;
    }
    let place = folder.join("test/broker");
    build_plugins(&place.join("c"))?;
    let mut port = PORTS + if mode == Mode::Plain { 0 } else { 1000 };
    for (ports, file) in listed(&fs::read_to_string(place.join("test.py"))?) {
        if !file.contains(only) {
            continue;
        }
        let reason = SKIPPED.iter().find(|(start, _)| file.starts_with(start));
        found(match reason {
            Some((_, reason)) => result(mode, &file, Some(reason), Vec::new()),
            None => one(&place, mode, &file, port, ports)?,
        })?;
        port += ports;
    }
    Ok(())
}

/// Names of the tests, and how many ports each needs.
fn listed(text: &str) -> Vec<(u16, String)> {
    let tests = text.lines().filter_map(|line| {
        let (ports, rest) = line.trim().strip_prefix('(')?.split_once(", './")?;
        Some((ports.parse().ok()?, rest.split('\'').next()?.to_owned()))
    });
    tests.collect()
}

/// Lets tests start this program.
fn point_to(folder: &Path, program: &str) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "py") {
            let text = fs::read_to_string(&path)?;
            if text.contains(INSTALLED) {
                fs::write(&path, text.replace(INSTALLED, program))?;
            }
        }
    }
    Ok(())
}

/// Builds plugins that tests load, but for programs that need TLS.
fn build_plugins(folder: &Path) -> Result<()> {
    let mut targets = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(name) = name.strip_suffix(".c")
            && !name.starts_with("08-")
        {
            targets.push(format!("{name}.so"));
        }
    }
    let status = Command::new("make")
        .arg("--quiet")
        .args(targets)
        .current_dir(folder)
        .status()?;
    ensure!(status.success(), "the plugins of the tests cannot be built");
    Ok(())
}

fn result(mode: Mode, file: &str, skipped: Option<&str>, failures: Vec<String>) -> SuiteFile {
    let runs = skipped.is_none();
    SuiteFile {
        mode,
        shards: 1,
        file: file.to_owned(),
        passed: u32::from(runs && failures.is_empty()),
        failed: u32::from(!failures.is_empty()),
        skipped: skipped.map(str::to_owned),
        failures,
        seconds: 0.0,
    }
}

fn one(place: &Path, mode: Mode, file: &str, port: u16, ports: u16) -> Result<SuiteFile> {
    let mut python = Command::new("python3");
    python
        .arg(file)
        .args((port..port + ports).map(|port| port.to_string()));
    let outcome = run_program(&mut python, place, LIMIT)?;
    let failures = match outcome.success {
        Some(true) => Vec::new(),
        Some(false) => {
            let last: Vec<_> = outcome.text.lines().rev().take(2).collect();
            vec![last.join(" | ")]
        }
        None => vec![format!("no end after {LIMIT:?}, scaled")],
    };
    Ok(result(mode, file, None, failures))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_read_with_their_ports() {
        let text =
            "tests = [\n\t(1, './01-a.py'),\n    (3, './06-b.py'),\n    #(1, './03-c.py'),\n]\n";
        assert_eq!(
            listed(text),
            [(1, "01-a.py".to_owned()), (3, "06-b.py".to_owned())]
        );
    }
}
