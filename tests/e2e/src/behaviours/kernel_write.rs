//! A write by the guest's kernel into a sealed frame is stopped by the second-level page table.

use std::fs;
use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use vmsrs_protocol::ioctl::COMMIT_SEAL;

use crate::host::Guest;
use crate::raw::{App, peek, poke};
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
    guest.run("prepare", "")?;
    // The thread of the kernel that stores dies of it.
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
            "{mode}: one incident more on the host: {after:?}"
        );
        let incident = after.last().context("the newest incident")?;
        ensure!(
            incident["sealed_write"]["frame"] == frame,
            "{mode}: the host saw the frame: {incident}"
        );
        ensure!(
            incident["sealed_write"]["user"] == false,
            "{mode}: by the kernel: {incident}"
        );
        ensure!(
            incident["domain"] == "user",
            "{mode}: whose it is: {incident}"
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
    let tag = thread.begin(&[domain])?;
    // SAFETY: the page is the domain's, which the request holds.
    unsafe { poke(page.add(5), 7) };
    thread.commit(tag, COMMIT_SEAL)?;
    Ok(thread.end()?)
}

/// Has the kernel store into the sealed page; the error number that its write(2) gives.
fn stray(mode: &str) -> Result<i32> {
    let app = App::open("kernel-write")?;
    let (_, page) = app.domain("user", 4)?;
    // SAFETY: the page is readable by the whole process; this maps it for the module to find.
    let byte = unsafe { peek(page.add(5)) };
    ensure!(byte == 7, "the sealed byte is there");
    let command = format!("address {:#x} 0x63 {mode}", page as u64 + 5);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(format!("{DEBUGFS}/store"))?;
    let Err(error) = file.write(command.as_bytes()) else {
        anyhow::bail!("the kernel's store happened")
    };
    // SAFETY: as above.
    ensure!(unsafe { peek(page.add(5)) } == 7, "the byte is unharmed");
    let seen = fs::read_to_string(format!("{DEBUGFS}/byte"))?;
    ensure!(
        seen.trim() == "7",
        "the kernel sees it unharmed, too: {seen}"
    );
    print!("{}", fs::read_to_string(format!("{DEBUGFS}/frame"))?);
    error.raw_os_error().context("an error of the system")
}

fn nofault(_: &str) -> Result<()> {
    ensure!(
        stray("nofault")? == libc::EFAULT,
        "a store with a fix-up gives EFAULT"
    );
    Ok(())
}

fn raw(_: &str) -> Result<()> {
    ensure!(
        stray("raw")? == libc::EIO,
        "the kernel thread that stored died"
    );
    Ok(())
}
