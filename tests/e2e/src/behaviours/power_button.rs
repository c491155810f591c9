//! The life of a VM as a service: it is ready when the guest's driver has its device; `vmsrs stop` presses the guest's power
//! button and waits until the guest has turned itself off.

use std::fs;
use std::os::unix::net::UnixDatagram;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmsrs_bed::guest::Config;

use crate::host::Guest;
use crate::limits::BOOT_LIMIT;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "power_button_lets_the_guest_turn_itself_off",
    machine: Machine::Usual,
    steps: &[],
    host,
};

/// What the init of the guest says before it waits for its button.
const READY: &str = "waiting for the power button";

/// The init of a guest that reacts to its button, as docs/operating.md recommends.
pub const INIT: &str = r"mkdir -p /etc/acpi/PWRF
printf '#!/bin/sh\necho the power button was pressed\npoweroff -f\n' > /etc/acpi/PWRF/00000080
chmod +x /etc/acpi/PWRF/00000080
echo waiting for the power button
acpid -d
";

/// Boots a machine of its own, since the guest ends.
fn host(_: &mut Guest) -> Result<()> {
    let socket = std::env::temp_dir().join(format!("vmsrs-e2e-notify-{}", std::process::id()));
    let manager = UnixDatagram::bind(&socket)?;
    manager.set_nonblocking(true)?;
    let mut machine = Config::new("vmlinux", "button.img")
        .manager(&socket)
        .boot()?;
    let mut told = String::new();
    let hear = |told: &mut String| {
        let mut message = [0; 4096];
        while let Ok(length) = manager.recv(&mut message) {
            *told += &String::from_utf8_lossy(&message[..length]);
            told.push('\n');
        }
    };
    let console = machine.console_log();
    let said = || String::from_utf8_lossy(&fs::read(&console).unwrap_or_default()).into_owned();
    machine.wait("the guest's init", BOOT_LIMIT, |_| {
        hear(&mut told);
        Ok::<_, anyhow::Error>(said().contains(READY).then_some(()))
    })?;
    machine.wait("READY=1", BOOT_LIMIT, |_| {
        hear(&mut told);
        Ok::<_, anyhow::Error>(told.contains("READY=1").then_some(()))
    })?;
    ensure!(
        told.contains("STATUS=waiting for the guest's driver;") && told.contains("STATUS=running;"),
        "not the states of a boot: {told}"
    );
    // It is pressed again and again until the guest's program has opened the button.
    let output = machine
        .control()
        .run(&["stop", "--timeout", "3600", "--json"])?;
    hear(&mut told);
    fs::remove_file(&socket)?;
    ensure!(told.contains("STOPPING=1"), "not told of the end: {told}");
    let errors = String::from_utf8_lossy(&output.stderr);
    let said = said();
    ensure!(
        output.status.success() && output.stderr.is_empty(),
        "vmsrs stop ended with {}: {errors}\n{said}",
        output.status
    );
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(report["forced"] == false, "the guest was ended: {report}");
    ensure!(
        said.contains("the power button was pressed"),
        "the guest did not see the press: {said}"
    );
    let status = machine.exit_status()?.context("the process has ended")?;
    ensure!(status.success(), "vmsrs run ended with {status}");
    let log = machine.log()?;
    ensure!(
        log.contains("the guest turned itself off"),
        "not the reason of its end: {log}"
    );
    Ok(())
}
