//! The server's own test suite.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vmsrs_bed::patience;

use super::tell;
use crate::plan::{Finding, Mode, SuiteFile};

/// How long a file may take, by a clock that counts instructions: the longest waits a minute and a half.
const LIMIT: Duration = Duration::from_secs(1200);
/// The suite's program; all other files are Perl's.
const PROGRAM: &str = "testapp";
/// Files with thousands of commands, which take longer than all others together: they come last.
const LONGEST: [&str; 5] = [
    "binary.t",
    "chunked-items.t",
    "getset.t",
    "lru-crawler.t",
    "restart.t",
];

/// Runs the files one after the other, as `prove` does, but for those that are done.
pub(super) fn run(mode: Mode, shards: u32, only: &str, done: &[String]) -> Result<()> {
    let folder = Path::new("/").join(mode.name());
    let mut files = vec![PROGRAM.to_owned()];
    for entry in fs::read_dir(folder.join("t"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".t") {
            files.push(name);
        }
    }
    files.retain(|file| file.contains(only) && !done.contains(file));
    files.sort_by_key(|file| (LONGEST.contains(&&**file), file.clone()));
    for (number, file) in files.iter().enumerate() {
        println!("{}: {file}, {} of {}", mode.name(), number + 1, files.len());
        let found = one(&folder, mode, shards, file)?;
        tell(&Finding::Suite(found))?;
    }
    Ok(())
}

fn one(folder: &Path, mode: Mode, shards: u32, file: &str) -> Result<SuiteFile> {
    let log = Path::new("/tmp/suite.log");
    let output = File::create(log)?;
    let mut command = match file {
        PROGRAM => Command::new(format!("./{PROGRAM}")),
        _ => Command::new("perl"),
    };
    if file != PROGRAM {
        command.args(["-I.", "-It/lib"]).arg(format!("t/{file}"));
    }
    let mut process = command
        .current_dir(folder)
        .env("MEMCACHED_SHARDS", shards.to_string())
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {file}"))?;
    let start = Instant::now();
    let limit = patience::scaled(LIMIT);
    let status = loop {
        if let Some(status) = process.try_wait()? {
            break Some(status);
        }
        if start.elapsed() > limit {
            break None;
        }
        thread::sleep(Duration::from_millis(50));
    };
    let seconds = start.elapsed().as_secs_f64();
    // What the file has started and left.
    let group = i32::try_from(process.id())?;
    // SAFETY: sends a signal to the process group that was made for the file.
    unsafe { libc::kill(-group, libc::SIGKILL) };
    process.wait()?;
    let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    let mut found = SuiteFile {
        mode,
        shards,
        file: file.to_owned(),
        passed: 0,
        failed: 0,
        skipped: None,
        failures: Vec::new(),
        seconds: 0.0,
    };
    parse(&text, &mut found);
    found.seconds = seconds;
    match status {
        None => found.failures.push(format!("no end after {limit:?}")),
        Some(status) if !status.success() && found.failed == 0 => {
            let last: Vec<_> = text.lines().rev().take(3).collect();
            found
                .failures
                .push(format!("{status}: {}", last.join(" | ")));
        }
        Some(_) => {}
    }
    // A file that ends early has failed as a whole.
    if found.failed == 0 && !found.failures.is_empty() {
        found.failed = 1;
    }
    Ok(found)
}

/// Reads the Test Anything Protocol.
fn parse(text: &str, found: &mut SuiteFile) {
    let mut planned = None;
    for line in text.lines() {
        if let Some(plan) = line.strip_prefix("1..") {
            let (count, reason) = plan.split_once('#').unwrap_or((plan, ""));
            planned = count.trim().parse::<u32>().ok();
            if planned == Some(0) {
                found.skipped = Some(reason.trim().to_owned());
            }
        } else if line.starts_with("ok ") {
            found.passed += 1;
        } else if let Some(rest) = line.strip_prefix("not ok ") {
            if rest.contains("# TODO") {
                found.passed += 1;
                continue;
            }
            found.failed += 1;
            if found.failures.len() < 8 {
                found.failures.push(rest.to_owned());
            }
        }
    }
    if let Some(planned) = planned
        && found.passed + found.failed < planned
    {
        let missing = planned - found.passed - found.failed;
        found.failed += missing;
        found
            .failures
            .push(format!("{missing} of {planned} tests did not run"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> SuiteFile {
        let mut found = SuiteFile {
            mode: Mode::Plain,
            shards: 1,
            file: String::new(),
            passed: 0,
            failed: 0,
            skipped: None,
            failures: Vec::new(),
            seconds: 0.0,
        };
        parse(text, &mut found);
        found
    }

    #[test]
    fn tests_are_counted_as_they_say() {
        let found = parsed("1..4\nok 1 - a\nnot ok 2 - b\n#   Failed test 'b'\nok 3 # skip no\n");
        assert_eq!((found.passed, found.failed), (2, 2));
        assert_eq!(found.failures, ["2 - b", "1 of 4 tests did not run"]);
    }

    #[test]
    fn a_plan_of_nothing_is_a_file_that_does_not_apply() {
        let found = parsed("1..0 # SKIP extstore not enabled\n");
        assert_eq!(found.skipped.as_deref(), Some("SKIP extstore not enabled"));
        assert_eq!((found.passed, found.failed), (0, 0));
    }
}
