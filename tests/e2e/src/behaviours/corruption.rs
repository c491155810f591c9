//! Content of sealed frames that goes wrong by itself: a flipped bit in the host's memory.

use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use vmsrs::{App, Domain, DomainOptions, Error, RunError};
use vmsrs_protocol::PAGE_SIZE;

use crate::host::Guest;
use crate::raw;
use crate::{Behaviour, Machine};

/// With a mirror.
pub(super) const MIRRORED: Behaviour = Behaviour {
    name: "a_flipped_bit_in_a_sealed_frame_is_repaired_from_the_mirror",
    machine: Machine::Usual,
    steps: STEPS,
    host: mirrored,
};

/// Without.
pub(super) const UNMIRRORED: Behaviour = Behaviour {
    name: "a_flipped_bit_without_a_mirror_is_an_incident_for_that_domain_alone",
    machine: Machine::Usual,
    steps: STEPS,
    host: unmirrored,
};

const STEPS: &[(&str, fn(&str) -> Result<()>)] = &[
    ("write", write),
    ("read", read),
    ("refused", refused),
    ("unreachable", unreachable),
];

const APP: &str = "corruption";
/// What every page of the value begins with, so that the host finds its frames.
const MARK: &[u8] = b"this page is watched by a checksum; ";
/// Bytes of the value: it has whole pages of its own.
const LENGTH: usize = 3 * PAGE_SIZE as usize;

fn mirrored(guest: &mut Guest) -> Result<()> {
    guest.run("write", "mirrored")?;
    let before = status(guest)?;
    ensure!(
        before["mirror_frames"].as_u64() > Some(0),
        "the mirror has frames: {before}"
    );
    let frames = flip(guest, "mirrored", 1)?;
    ensure!(frames == 1, "a frame of the value was hit");
    let found = guest.vmsrs(&["scrub", "--app", APP, "--domain", "mirrored"])?;
    ensure!(
        found["repaired"] == 1 && found["damaged"] == 0,
        "the check repairs it: {found}"
    );
    let incident = newest(guest)?;
    ensure!(
        incident["outcome"] == "repaired" && incident["domain"] == "mirrored",
        "the incident says so: {incident}"
    );
    ensure!(
        incident["corruption"]["changed_bytes"] == 1,
        "and what was wrong: {incident}"
    );
    guest.run("read", "mirrored")?;
    Ok(())
}

fn unmirrored(guest: &mut Guest) -> Result<()> {
    guest.run("write", "bystander")?;
    guest.run("write", "plain")?;
    let frames = flip(guest, "plain", 1)?;
    ensure!(frames == 1, "a frame of the value was hit");
    let code = guest.exit_code(&["scrub", "--app", APP])?;
    ensure!(code == Some(9), "scrub says that content is lost: {code:?}");
    let incident = newest(guest)?;
    ensure!(
        incident["outcome"] == "lost" && incident["domain"] == "plain",
        "the incident names the domain: {incident}"
    );
    ensure!(
        status(guest)?["damaged_pages"] == 1,
        "one page is lost: {}",
        status(guest)?
    );
    let address = incident["address"].as_u64().context("its address")?;
    guest.run("unreachable", &address.to_string())?;
    guest.run("refused", "plain")?;
    guest.run("read", "bystander")?;
    Ok(())
}

fn status(guest: &Guest) -> Result<Value> {
    Ok(guest.vmsrs(&["status"])?["recovery"].clone())
}

fn newest(guest: &Guest) -> Result<Value> {
    guest
        .incidents("checksum")?
        .pop()
        .context("an incident of a checksum")
}

/// Flips a bit in `count` of the frames that hold pages of the value, in the memory of the VMM. Gives
/// how many there were to hit.
fn flip(guest: &Guest, key: &str, count: usize) -> Result<usize> {
    let folder = format!("/proc/{}/fd", guest.pid());
    let mark = mark(key);
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if !fs::read_link(&path).is_ok_and(|to| to.to_string_lossy().contains("vmsrs-window")) {
            continue;
        }
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut page = vec![0; PAGE_SIZE as usize];
        let mut done = 0;
        for offset in (0..file.metadata()?.size()).step_by(page.len()) {
            file.read_exact_at(&mut page, offset)?;
            if page.starts_with(&mark) && done < count {
                let at = page.len() - 1;
                file.write_all_at(&[page[at] ^ 4], offset + at as u64)?;
                done += 1;
            }
        }
        return Ok(done);
    }
    bail!("the VMM has no window")
}

fn mark(key: &str) -> Vec<u8> {
    [MARK, key.as_bytes()].concat()
}

fn open(key: &str) -> Result<&'static Domain> {
    // SAFETY: no request here lends its locals to others.
    let app = unsafe { App::open(APP) }?;
    let options = DomainOptions {
        mirror: key == "mirrored",
    };
    Ok(app.domain_with(key, options)?)
}

/// The value: pages that begin with the mark, filled up with a byte.
fn value(key: &str) -> Vec<u8> {
    let mut value = vec![0x5a; LENGTH];
    for page in value.chunks_mut(PAGE_SIZE as usize) {
        let mark = mark(key);
        page[..mark.len()].copy_from_slice(&mark);
    }
    value
}

fn write(key: &str) -> Result<()> {
    let domain = open(key)?;
    let value = value(key);
    domain.run(|request| {
        let block = request.domain().allocate(LENGTH, PAGE_SIZE as usize)?;
        // SAFETY: a fresh block of that size.
        unsafe {
            block
                .as_ptr()
                .copy_from_nonoverlapping(value.as_ptr(), LENGTH)
        };
        request.set_root(Some(block))?;
        Ok::<_, Error>(())
    })?;
    Ok(domain.app().flush()?)
}

/// Reads the value in a request.
fn look(key: &str) -> Result<Result<Vec<u8>, RunError<Error>>> {
    let domain = open(key)?;
    let mut seen = Vec::with_capacity(LENGTH);
    let result = domain.run(|request| {
        let root = request.root::<u8>().ok_or(Error::NotHeld)?;
        // SAFETY: the block that `write` made, of that size.
        let block = unsafe { std::slice::from_raw_parts(root.as_ptr(), LENGTH) };
        seen.extend_from_slice(block);
        Ok::<_, Error>(())
    });
    Ok(result.map(|()| seen))
}

fn read(key: &str) -> Result<()> {
    let seen = look(key)??;
    ensure!(seen == value(key), "the value is what was committed");
    Ok(())
}

/// A domain with a lost page is refused when it is opened.
fn refused(key: &str) -> Result<()> {
    match look(key) {
        Err(error) if matches!(error.downcast_ref(), Some(Error::Damaged { .. })) => Ok(()),
        result => bail!("opened a damaged domain: {result:?}"),
    }
}

/// The lost page, at the address that the host names, is out of the reach of everybody, and a page next
/// to it is not.
fn unreachable(address: &str) -> Result<()> {
    let lost: usize = address.parse()?;
    let app = raw::App::open(APP)?;
    app.domain("plain", 4)?;
    let (receiver, sender) = std::io::pipe()?;
    for (address, expected) in [(lost, false), (lost + PAGE_SIZE as usize, true)] {
        // The kernel's read of the page for this process gives EFAULT in place of a signal.
        // SAFETY: the kernel checks the address.
        let sent = unsafe { libc::write(sender.as_raw_fd(), address as *const _, 64) };
        ensure!(
            (sent == 64) == expected,
            "reading at {address:#x} gave {sent}: {}",
            std::io::Error::last_os_error()
        );
    }
    drop(receiver);
    Ok(())
}
