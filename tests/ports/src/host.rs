//! The side of the KVM host: boots a guest for each part, tells it what to do, and passes on what it finds.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmsrs_bed::guest::{Config, Guest};
use vmsrs_bed::{process, results};

use crate::plan::{Finding, Plan};

/// The guest's line when it waits for its part.
pub(crate) const PLAN: &str = "@plan";
/// Starts a line with a finding.
pub(crate) const FINDING: &str = "@finding ";
/// How long `vmsrs run` may take to end after its guest; it takes less than a second.
const END_LIMIT: Duration = Duration::from_secs(300);

/// Boots a guest for each part.
pub(crate) fn run(kernel: &Path, initramfs: &Path, plans: &[Plan]) -> Result<()> {
    for plan in plans {
        let config = Config::new(kernel, initramfs)
            .vcpus(plan.part.vcpus())
            .memory("1G")
            .window("512M")
            .pool(8192)
            .console_on_pipes();
        if plan.part.is_timed() && plan.part.vcpus() > 1 {
            // A virtual CPU that wakes up waits until the others wait: what they lose would count as theirs.
            process::batch()?;
        }
        let mut guest = config.boot()?;
        serve(&mut guest, plan).with_context(|| guest.logs())?;
    }
    Ok(())
}

/// Serves the guest's console until the guest ends.
fn serve(guest: &mut Guest, plan: &Plan) -> Result<()> {
    let (mut input, output) = guest.take_console().context("the guest's console")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim();
        if line == PLAN {
            input.write_all(format!("{}\n", serde_json::to_string(plan)?).as_bytes())?;
        } else if let Some(finding) = line.strip_prefix(FINDING) {
            match serde_json::from_str::<Finding>(finding) {
                Ok(finding) => results::tell(&finding)?,
                // A line of the kernel may have come between. The next finding has the same, or the report lacks it.
                Err(error) if plan.part.is_piecemeal() => println!("unreadable, {error}: {line}"),
                Err(error) => return Err(error.into()),
            }
        } else {
            println!("{line}");
        }
    }
    let status = guest.wait_for_end("the end of vmsrs run", END_LIMIT)?;
    ensure!(status.success(), "vmsrs run ended with {status}");
    Ok(())
}
