//! The second-level page table stops a write of the guest's kernel to a sealed frame.

use std::fs;
use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use vmsrs_protocol::ioctl::COMMIT_SEAL;

use crate::host::Guest;
use crate::raw::{App, peek};
use crate::stray::{DEBUGFS, load_stray_module};
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "kernel_write_to_sealed_frame_is_stopped",
    machine: Machine::Usual,
    steps: &[("prepare", prepare), ("nofault", nofault), ("raw", raw)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run_steps(&["prepare"])?;
    // The kernel thread that stores is killed by it.
    guest.expect_complaint("general protection fault");
    for mode in ["nofault", "raw"] {
        let before = guest.incidents("sealed-write")?.len();
        let frame: u64 = guest
            .run(mode, "")?
            .trim()
            .parse()
            .context("the frame's number")?;
        let after = guest.incidents("sealed-write")?;
        ensure!(
            after.len() == before + 1,
            "{mode}: not exactly one more incident: {after:?}"
        );
        let incident = after.last().context("the newest incident")?;
        ensure!(
            incident["sealed_write"]["frame"] == frame,
            "{mode}: not frame {frame}: {incident}"
        );
        ensure!(
            incident["sealed_write"]["user"] == false,
            "{mode}: not by the kernel: {incident}"
        );
        ensure!(
            incident["domain"] == "user",
            "{mode}: not the domain of the frame: {incident}"
        );
    }
    Ok(())
}

/// Loads the test module and seals a page.
fn prepare(_: &str) -> Result<()> {
    load_stray_module()?;
    let app = App::open("kernel-write")?;
    let (domain, page) = app.domain("user", 4)?;
    let thread = app.thread()?;
    thread.commit_byte(domain, page.wrapping_add(5), 7, COMMIT_SEAL)
}

/// Makes the kernel store to the sealed page; returns the error number of the write(2) that asks for it.
fn stray(mode: &str) -> Result<i32> {
    let app = App::open("kernel-write")?;
    let (_, page) = app.domain("user", 4)?;
    // SAFETY: the page is readable by the whole process; this maps it for the module to find.
    let byte = unsafe { peek(page.add(5)) };
    ensure!(byte == 7, "the sealed byte is {byte}");
    let command = format!("address {:#x} 0x63 {mode}", page as u64 + 5);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(format!("{DEBUGFS}/store"))?;
    let Err(error) = file.write(command.as_bytes()) else {
        anyhow::bail!("the kernel's store was not stopped")
    };
    // SAFETY: as above.
    ensure!(unsafe { peek(page.add(5)) } == 7, "the byte has changed");
    let seen = fs::read_to_string(format!("{DEBUGFS}/byte"))?;
    ensure!(seen.trim() == "7", "the kernel sees a changed byte: {seen}");
    print!("{}", fs::read_to_string(format!("{DEBUGFS}/frame"))?);
    error.raw_os_error().context("an error number")
}

fn nofault(_: &str) -> Result<()> {
    ensure!(
        stray("nofault")? == libc::EFAULT,
        "a store with a fixup does not fail with EFAULT"
    );
    Ok(())
}

fn raw(_: &str) -> Result<()> {
    ensure!(
        stray("raw")? == libc::EIO,
        "the kernel thread that stored was not killed"
    );
    Ok(())
}
