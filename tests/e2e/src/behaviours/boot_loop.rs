//! A guest that resets at every boot is restarted only a limited number of times.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::host::Guest;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "guest_that_resets_at_every_boot_is_given_up",
    machine: Machine::Restarting,
    steps: &[],
    host,
};

/// Exit code of `vmsrs run` when the guest has reset itself.
const GUEST_RESET: i32 = 6;

/// Boots a machine of its own with a kernel that resets at once (`tests/e2e/programs/resets.S`): restarts are counted
/// within a period, which the boots of a real kernel would exceed on a busy machine.
fn host(_: &mut Guest) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("vmsrs-e2e-loop-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let console = folder.join("console.log");
    let output = Command::new("vmsrs")
        .args(["run", "--kernel", "resets", "--memory", "256M"])
        .args(["--restarts", "1", "--json", "--window", "16M"])
        .arg("--socket")
        .arg(folder.join("vm.sock"))
        .arg("--console")
        .arg(&console)
        .output()
        .context("start vmsrs")?;
    let console = fs::read(&console)?;
    let console = String::from_utf8_lossy(&console);
    fs::remove_dir_all(&folder)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(GUEST_RESET),
        "vmsrs ended with {}: {errors}\n{console}",
        output.status
    );
    ensure!(
        errors.contains("the guest went down after 1 restart within 60 s"),
        "the reason is missing: {errors}"
    );
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        report["reason"] == "reset" && report["gave_up"] == true && report["restarts"] == 1,
        "not a report of two resets: {report}"
    );
    let boots = console.matches("the kernel resets the machine").count();
    ensure!(boots == 2, "{boots} boots on the console: {console}");
    Ok(())
}
