//! A user process that has the window mapped writable, past the driver, is stopped by the
//! second-level page table; the signal has the exact address.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use vmsrs_protocol::ioctl::COMMIT_SEAL;
use vmsrs_protocol::{PAGE_SIZE, ZERO_FRAME};

use crate::fault::{store_instruction, try_store};
use crate::host::Guest;
use crate::raw::{App, peek, poke};
use crate::stray::{DEBUGFS, load_stray_module};
use crate::{Behaviour, Machine};

/// `si_code` of a write that a protection key forbids: what Linux makes of the host's page fault.
const SEGV_PKUERR: i32 = 4;
/// Pages looked through for the sealed one.
const FRAMES: usize = 16384;

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "writable_window_mapping_cannot_change_sealed_frames",
    machine: Machine::Usual,
    steps: &[("write", write)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    let address: u64 = guest
        .run("write", "")?
        .trim()
        .parse()
        .context("the address")?;
    let incidents = guest.incidents("sealed-write")?;
    let newest = incidents.last().context("an incident")?;
    ensure!(
        newest["address"] == address,
        "the host knows the address: {newest}"
    );
    ensure!(
        newest["sealed_write"]["user"] == true,
        "by a user process: {newest}"
    );
    Ok(())
}

fn write(_: &str) -> Result<()> {
    let app = App::open("window-mapped")?;
    let (domain, page) = app.domain("user", 4)?;
    let thread = app.thread()?;
    let pattern: [u8; 16] = *b"seal this page 1";
    let tag = thread.begin(&[domain])?;
    for (at, byte) in pattern.iter().enumerate() {
        // SAFETY: the page is the domain's, which the request holds.
        unsafe { poke(page.add(at), *byte) };
    }
    thread.commit(tag, COMMIT_SEAL)?;
    thread.end()?;

    // What a corrupt page table of the guest would do: the frames are mapped writable.
    load_stray_module()?;
    let memory = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("{DEBUGFS}/window"))?;
    // SAFETY: a new mapping at an address that the kernel chooses.
    let mapped = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            FRAMES * PAGE_SIZE as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            memory.as_raw_fd(),
            0,
        )
    };
    ensure!(
        mapped != libc::MAP_FAILED,
        "map the window: {}",
        std::io::Error::last_os_error()
    );
    let mapped = mapped.cast::<u8>();
    let frame = (ZERO_FRAME as usize..FRAMES)
        .find(|frame| {
            // SAFETY: the mapping has that many frames, all readable.
            let bytes =
                unsafe { std::slice::from_raw_parts(mapped.add(frame * PAGE_SIZE as usize), 16) };
            bytes == pattern
        })
        .context("the sealed frame")?;
    let target = mapped.wrapping_add(frame * PAGE_SIZE as usize + 9);
    // SAFETY: the frame holds a page of this test alone, and the store is expected to be stopped.
    let Err(fault) = (unsafe { try_store(target, 0) }) else {
        anyhow::bail!("the store happened")
    };
    ensure!(
        fault.signal == libc::SIGSEGV && fault.code == SEGV_PKUERR,
        "{fault:x?}"
    );
    ensure!(
        fault.address == target as u64,
        "the address is exact: {fault:x?}"
    );
    ensure!(
        fault.instruction == store_instruction(),
        "at the very instruction: {fault:x?}"
    );
    // SAFETY: the page is readable by the whole process.
    let byte = unsafe { peek(page.add(9)) };
    ensure!(byte == pattern[9], "the byte is unharmed");
    println!("{}", target as u64);
    Ok(())
}
