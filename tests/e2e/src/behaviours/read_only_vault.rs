//! The vault is never writable for the guest, not for its kernel and not for a process whose page table is corrupt; the
//! pool always is, and what is written there reaches no page that is not its own.

use anyhow::{Context, Result, bail, ensure};
use vmsrs_protocol::PAGE_SIZE;
use vmsrs_protocol::ioctl::COMMIT_SEAL;

use crate::fault::{Fault, SEGV_PKUERR, store_instruction, try_store};
use crate::host::Guest;
use crate::raw::{App, Thread, peek, poke};
use crate::stray::{Region, load_stray_module};
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "vault_is_never_writable_for_the_guest",
    // Every frame is tried.
    machine: Machine::SmallWindow,
    steps: &[("process", process), ("kernel", kernel), ("pool", pool)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    let output = guest.run("process", "")?;
    let mut numbers = output.split_whitespace().map(str::parse::<u64>);
    let mut next = || {
        numbers
            .next()
            .context("address and frame")?
            .map_err(anyhow::Error::from)
    };
    let (address, frame) = (next()?, next()?);
    let incidents = guest.incidents("sealed-write")?;
    let newest = incidents.last().context("no incident")?;
    ensure!(
        newest["address"] == address && newest["sealed_write"]["frame"] == frame,
        "not address and frame of the write: {newest}"
    );
    ensure!(
        newest["sealed_write"]["user"] == true,
        "not by a user process: {newest}"
    );
    guest.run_steps(&["kernel", "pool"])?;
    let found = guest.control().query(&["scrub"])?;
    ensure!(found["damaged"] == 0, "content is lost: {found}");
    Ok(())
}

/// Where the tests write in a frame.
const OFFSET: u32 = 9;

/// The same byte in each frame of a mapping.
fn bytes(mapped: *mut u8, frames: u32) -> Vec<u8> {
    (0..frames)
        // SAFETY: callers have mapped that many frames.
        .map(|frame| unsafe { peek(byte(mapped, frame)) })
        .collect()
}

/// Whether no frame has another byte than before, except for retired ones, which the host may have wiped since.
fn are_unchanged(before: &[u8], after: &[u8]) -> bool {
    before
        .iter()
        .zip(after)
        .all(|(before, after)| after == before || *after == 0)
}

fn byte(mapped: *mut u8, frame: u32) -> *mut u8 {
    mapped.wrapping_add((frame * PAGE_SIZE + OFFSET) as usize)
}

/// Opens an app with a sealed page, so that not all frames are free ones.
fn open() -> Result<App> {
    let app = App::open("read-only-vault")?;
    let (domain, page) = app.domain("user", 4)?;
    app.thread()?
        .commit_byte(domain, page.wrapping_add(OFFSET as usize), 7, COMMIT_SEAL)?;
    Ok(app)
}

fn process(_: &str) -> Result<()> {
    load_stray_module()?;
    let app = open()?;
    let frames = app.info()?.vault_frames;
    let mapped = Region::Vault.map(frames as usize)?;
    let before = bytes(mapped, frames);
    ensure!(before.contains(&7), "the sealed page is in no frame");
    for frame in 0..frames {
        let target = byte(mapped, frame);
        // SAFETY: no other process of this test uses the device, and the store is expected to fault.
        let Err(fault) = (unsafe { try_store(target, !before[frame as usize]) }) else {
            bail!("the store to frame {frame} was not stopped")
        };
        // Linux makes SEGV_PKUERR of the page fault that the host injects.
        let expected = Fault {
            signal: libc::SIGSEGV,
            code: SEGV_PKUERR,
            address: target as u64,
            instruction: store_instruction(),
        };
        ensure!(
            fault == expected,
            "frame {frame}: {fault:x?}, expected {expected:x?}"
        );
    }
    ensure!(
        are_unchanged(&before, &bytes(mapped, frames)),
        "a frame has changed"
    );
    println!("{} {}", byte(mapped, frames - 1) as u64, frames - 1);
    Ok(())
}

fn kernel(_: &str) -> Result<()> {
    let app = open()?;
    let frames = app.info()?.vault_frames;
    let mapped = Region::Vault.map(frames as usize)?;
    let before = bytes(mapped, frames);
    for frame in 0..frames {
        let error = Region::Vault.store(frame, OFFSET, !before[frame as usize])?;
        ensure!(
            error == Some(libc::EFAULT),
            "the kernel's store to frame {frame}: {error:?}"
        );
    }
    ensure!(
        are_unchanged(&before, &bytes(mapped, frames)),
        "a frame has changed"
    );
    Ok(())
}

/// Pages of a domain whose drafts get frames that hold garbage.
const PAGES: u32 = 32;

/// Every frame of the pool is filled with garbage while all are free. No page shows it.
fn pool(_: &str) -> Result<()> {
    const GARBAGE: u8 = 0xee;
    let app = App::open("read-only-vault")?;
    let (domain, first) = app.domain("filled", PAGES)?;
    let thread = app.thread()?;
    app.drain()?;
    let info = app.info()?;
    let mapped = Region::Pool.map(info.pool_frames as usize)?;
    let fill = || {
        for at in 0..(info.pool_frames * PAGE_SIZE) as usize {
            // SAFETY: within the mapping, and no request of this app is in flight.
            unsafe { poke(mapped.wrapping_add(at), GARBAGE) };
        }
    };
    fill();
    ensure!(
        bytes(mapped, info.pool_frames)
            .iter()
            .all(|&byte| byte == GARBAGE),
        "the pool is not writable"
    );
    // Pages that were never committed, and after that committed ones.
    for expected in 0..3 {
        rewrite(&thread, domain, first, expected)?;
        app.drain()?;
        fill();
    }
    Ok(())
}

/// A request that finds `expected` in all of the pages and writes the next number.
fn rewrite(
    thread: &Thread<'_>,
    domain: crate::raw::Domain,
    first: *mut u8,
    expected: u8,
) -> Result<()> {
    let tag = thread.begin(&[domain])?;
    for page in 0..PAGES as usize {
        let page = first.wrapping_add(page * PAGE_SIZE as usize);
        // SAFETY: the page is the domain's, which the request holds.
        unsafe { poke(page, expected + 1) };
        for at in 1..PAGE_SIZE as usize {
            let place = page.wrapping_add(at);
            // SAFETY: as above.
            let found = unsafe { peek(place) };
            ensure!(found == expected, "{found:#x} at {at}, expected {expected}");
            // SAFETY: as above.
            unsafe { poke(place, expected + 1) };
        }
    }
    thread.commit(tag, 0)?;
    Ok(thread.end()?)
}
