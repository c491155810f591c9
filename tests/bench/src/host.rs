//! The side of the KVM host: boots the guest, and counts what each of its measurements costs the host.
//!
//! The guest asks on its console what to measure, and the answer is its plan. It says when it is ready for the next
//! measurement and waits for a line, so the counters are read while it is idle. An empty measurement gives the cost of those
//! lines.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmsrs_bed::guest::{Config, Guest};
use vmsrs_bed::results;

use crate::plan::Plan;
use crate::profile::facts::{self, Fact};
use crate::sample::{Cost, Measured, Sample};

/// The guest's line when it waits for its plan.
pub(crate) const PLAN: &str = "@plan";

/// The guest's line when it waits.
pub(crate) const READY: &str = "@ready";

/// Starts a line of the guest's that is for the profile.
pub(crate) const FACT: &str = "@fact ";

/// Facts in a line of the results. A kernel has a hundred thousand functions, and each line costs the emulated CPU more than
/// what is in it.
const FACTS_A_LINE: usize = 1000;

/// KVM's counters are below this folder.
const DEBUGFS: &str = "/sys/kernel/debug";

/// How long `vmsrs run` may take to end after its guest; it takes less than a second.
const END_LIMIT: Duration = Duration::from_secs(300);

/// Boots a guest for each plan, answers it, and writes each measurement to the job's results.
pub(crate) fn run(kernel: &Path, initramfs: &Path, plans: &[Plan]) -> Result<()> {
    if !Path::new(DEBUGFS).join("kvm").is_dir() {
        let mounted = Command::new("mount")
            .args(["-t", "debugfs", "none", DEBUGFS])
            .status();
        ensure!(
            mounted.is_ok_and(|status| status.success()),
            "cannot mount {DEBUGFS}, which has KVM's counters"
        );
    }
    for plan in plans {
        let config = Config::new(kernel, initramfs)
            .vcpus(plan.vcpus)
            .memory(format!("{}M", plan.memory_mib))
            .window(format!("{}M", plan.window_mib))
            .pool(plan.pool)
            .console_on_pipes();
        let mut guest = config.boot()?;
        if plan.profile {
            for facts in facts::of_host(guest.pid())?.chunks(FACTS_A_LINE) {
                results::tell(&facts)?;
            }
        }
        measure(&mut guest, plan).with_context(|| guest.logs())?;
    }
    Ok(())
}

/// Serves the guest's console until the guest ends.
fn measure(guest: &mut Guest, plan: &Plan) -> Result<()> {
    let (mut input, output) = guest.take_console().context("the guest's console")?;
    let process = guest.pid();
    let mut before = None;
    for line in BufReader::new(output).lines() {
        let line = line?;
        if line.trim() == PLAN {
            input.write_all(format!("{}\n", serde_json::to_string(plan)?).as_bytes())?;
        } else if line.trim() == READY {
            before = Some(now(process)?);
            input.write_all(b"\n")?;
        } else if let Some(sample) = Sample::in_line(&line) {
            let before = before
                .take()
                .context("a measurement ended that had not started")?;
            let cost = now(process)?.since(&before);
            results::tell(&Measured {
                sample,
                vcpus: plan.vcpus,
                cost,
            })?;
        } else if let Some(fact) = line.trim().strip_prefix(FACT) {
            results::tell(&[serde_json::from_str::<Fact>(fact)?])?;
        } else {
            println!("{line}");
        }
    }
    let status = guest.wait_for_end("the end of vmsrs run", END_LIMIT)?;
    ensure!(status.success(), "vmsrs run ended with {status}");
    Ok(())
}

/// The counters of a VM monitor's process.
fn now(process: u32) -> Result<Cost> {
    let mut cost = Cost::default();
    let mine = format!("{process}-");
    for folder in fs::read_dir(Path::new(DEBUGFS).join("kvm"))? {
        let folder = folder?;
        if !folder.file_name().to_string_lossy().starts_with(&mine) {
            continue;
        }
        for file in fs::read_dir(folder.path())? {
            let file = file?;
            let value = fs::read_to_string(file.path()).unwrap_or_default();
            // Folders of vCPUs and histograms are not numbers.
            if let Ok(value) = value.trim().parse::<u64>() {
                let name = file.file_name().to_string_lossy().into_owned();
                *cost.exits.entry(name).or_default() += value;
            }
        }
    }
    let process = Path::new("/proc").join(process.to_string());
    for thread in fs::read_dir(process.join("task"))? {
        let thread = thread?.path();
        let name = fs::read_to_string(thread.join("comm"))?.trim().to_owned();
        let times = fs::read_to_string(thread.join("schedstat"))?;
        *cost.cpu_ns.entry(name).or_default() += first_number(&times).context("schedstat")?;
    }
    let status = fs::read_to_string(process.join("status"))?;
    cost.memory_bytes = 1024 * anonymous_kib(&status).context("RssAnon")?;
    Ok(cost)
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// The memory of a process that shows no file, in KiB, from its `status`. The guest's memory and the window are files.
fn anonymous_kib(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    first_number(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_the_first_number_of_schedstat() {
        assert_eq!(first_number("12345 6 7\n"), Some(12345));
        assert_eq!(first_number(""), None);
    }

    #[test]
    fn anonymous_memory_is_found_in_a_status() {
        let status = "VmRSS:\t  900 kB\nRssAnon:\t     512 kB\nRssFile:\t 3 kB\n";
        assert_eq!(anonymous_kib(status), Some(512));
        assert_eq!(anonymous_kib("VmRSS:\t 900 kB\n"), None);
    }
}
