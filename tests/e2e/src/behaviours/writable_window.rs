//! The second-level page table stops a process that has mapped the window writable without the driver; the signal has
//! the exact address.

use std::fs::OpenOptions;

use anyhow::{Context, Result, ensure};
use vmsrs_protocol::ioctl::COMMIT_SEAL;
use vmsrs_protocol::{PAGE_SIZE, ZERO_FRAME};

use crate::fault::{Fault, SEGV_PKUERR, store_instruction, try_store};
use crate::host::Guest;
use crate::mapping;
use crate::raw::{App, peek, poke};
use crate::stray::{DEBUGFS, load_stray_module};
use crate::{Behaviour, Machine};

/// Frames of the window, which are searched for the sealed one.
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
    let newest = incidents.last().context("no incident")?;
    ensure!(
        newest["address"] == address,
        "not the address of the write: {newest}"
    );
    ensure!(
        newest["sealed_write"]["user"] == true,
        "not by a user process: {newest}"
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

    // The frames are mapped writable, as by a corrupt page table of the guest.
    load_stray_module()?;
    let window = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("{DEBUGFS}/window"))?;
    let mapped = mapping::file(&window, FRAMES * PAGE_SIZE as usize).context("map the window")?;
    let mapped = mapped.as_ptr();
    let frame = (ZERO_FRAME as usize..FRAMES)
        .find(|frame| {
            // SAFETY: the mapping has that many frames, all of them readable.
            let bytes =
                unsafe { std::slice::from_raw_parts(mapped.add(frame * PAGE_SIZE as usize), 16) };
            bytes == pattern
        })
        .context("the sealed frame")?;
    let target = mapped.wrapping_add(frame * PAGE_SIZE as usize + 9);
    // SAFETY: the frame holds a page of this test, and the store is expected to fault.
    let Err(fault) = (unsafe { try_store(target, 0) }) else {
        anyhow::bail!("the store was not stopped")
    };
    // Linux makes SEGV_PKUERR of the page fault that the host injects.
    let expected = Fault {
        signal: libc::SIGSEGV,
        code: SEGV_PKUERR,
        address: target as u64,
        instruction: store_instruction(),
    };
    ensure!(fault == expected, "{fault:x?}, expected {expected:x?}");
    // SAFETY: the page is readable by the whole process.
    let byte = unsafe { peek(page.add(9)) };
    ensure!(byte == pattern[9], "the byte has changed");
    println!("{}", target as u64);
    Ok(())
}
