//! Sealed frames whose memory fails: a flipped bit on the host, or memory that the host's kernel has found broken.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use vmsrs::{App, Domain, DomainOptions, Error, Kind, Options, RunError};
use vmsrs_bed::vault;
use vmsrs_protocol::PAGE_SIZE;

use crate::host::Guest;
use crate::limits::EVENT_LIMIT;
use crate::{Behaviour, Machine, Step};
use crate::{raw, steps};

/// A flipped bit, with a mirror.
pub(super) const MIRRORED: Behaviour = Behaviour {
    name: "bit_flip_is_repaired_from_mirror",
    machine: Machine::Usual,
    steps: STEPS,
    host: mirrored,
};

/// A flipped bit, without a mirror.
pub(super) const UNMIRRORED: Behaviour = Behaviour {
    name: "bit_flip_without_mirror_damages_only_its_domain",
    machine: Machine::Usual,
    steps: STEPS,
    host: unmirrored,
};

/// Broken memory, with a mirror.
pub(super) const POISONED_MIRRORED: Behaviour = Behaviour {
    name: "poisoned_frame_is_restored_from_mirror",
    machine: Machine::Usual,
    steps: STEPS,
    host: poisoned_mirrored,
};

/// Broken memory, without a mirror.
pub(super) const POISONED_UNMIRRORED: Behaviour = Behaviour {
    name: "poisoned_frame_without_mirror_damages_only_its_domain",
    machine: Machine::Usual,
    steps: STEPS,
    host: poisoned_unmirrored,
};

/// Broken memory of the pool, which the driver's next drafts get.
pub(super) const POISONED_POOL: Behaviour = Behaviour {
    name: "poisoned_pool_frame_costs_requests_and_no_data",
    machine: Machine::Usual,
    steps: STEPS,
    host: poisoned_pool,
};

/// Broken memory of the pool with what a request commits and wants to be sealed.
pub(super) const POISONED_COMMIT: Behaviour = Behaviour {
    name: "commit_whose_content_is_lost_before_its_seal_is_an_error",
    machine: Machine::Usual,
    steps: STEPS,
    host: poisoned_commit,
};

const STEPS: &[(&str, Step)] = &[
    ("write", write),
    ("write until done", write_until_done),
    ("read", read),
    ("refused", refused),
    ("fails", fails),
    ("unreachable", unreachable),
    ("begin a commit", begin_commit),
    ("commit", commit),
    ("end a commit", end_commit),
];

/// Exit code of `vmsrs scrub` when content is lost.
const CONTENT_LOST: i32 = 9;

const APP: &str = "corruption";
/// How every page of the value starts, so that its frames can be found on the host.
const MARK: &[u8] = b"this page is watched by a checksum; ";
/// Requests that may meet broken frames.
const TRIES: u32 = 64;
/// Length of the value, in whole pages.
const LENGTH: usize = 3 * PAGE_SIZE as usize;

fn mirrored(guest: &mut Guest) -> Result<()> {
    guest.run("write", "mirrored")?;
    let before = status(guest)?;
    ensure!(
        before["mirror_frames"].as_u64() > Some(0),
        "the mirror has no frames: {before}"
    );
    let incident = first_incident(guest, "mirrored", "checksum", flip)?;
    ensure!(
        incident["corruption"]["changed_bytes"] == 1,
        "not the damage that was done: {incident}"
    );
    Ok(())
}

/// Damages one frame after another that holds a page of the value, until there is an incident; returns it.
///
/// Frames of the mirror look the same from outside and are repaired without an incident. The guest always sees the
/// right value.
fn first_incident(
    guest: &mut Guest,
    key: &str,
    kind: &str,
    damage: fn(&File, u64) -> Result<()>,
) -> Result<Value> {
    let (vault, offsets) = find(guest, key)?;
    for offset in offsets {
        damage(&vault, offset)?;
        // Broken memory is found by the guest's vCPU, a flipped bit by the scrub.
        if kind == "poison" {
            guest.run("read", key)?;
        }
        let found = guest
            .control()
            .query(&["scrub", "--app", APP, "--domain", key])?;
        ensure!(found["damaged"] == 0, "content is lost: {found}");
        guest.run("read", key)?;
        if let Ok(incident) = newest(guest, kind) {
            ensure!(
                incident["outcome"] == "repaired" && incident["domain"] == key,
                "not a repair in {key}: {incident}"
            );
            return Ok(incident);
        }
    }
    bail!("{key} has no sealed frame")
}

fn unmirrored(guest: &mut Guest) -> Result<()> {
    guest.run("write", "bystander")?;
    guest.run("write", "plain")?;
    let (vault, offsets) = find(guest, "plain")?;
    flip(&vault, offsets[0])?;
    let scrub = guest.control().run(&["scrub", "--app", APP])?;
    ensure!(
        scrub.status.code() == Some(CONTENT_LOST),
        "scrub does not say that content is lost: {scrub:?}"
    );
    let incident = newest(guest, "checksum")?;
    ensure!(
        incident["outcome"] == "lost" && incident["domain"] == "plain",
        "not a loss in that domain: {incident}"
    );
    ensure!(
        status(guest)?["damaged_pages"] == 1,
        "not exactly one page is lost: {}",
        status(guest)?
    );
    let address = incident["address"].as_u64().context("no address")?;
    guest.run("unreachable", &address.to_string())?;
    guest.run("refused", "plain")?;
    guest.run("read", "bystander")?;
    Ok(())
}

fn poisoned_mirrored(guest: &mut Guest) -> Result<()> {
    guest.run("write", "mirrored and poisoned")?;
    first_incident(guest, "mirrored and poisoned", "poison", poison).map(drop)
}

fn poisoned_unmirrored(guest: &mut Guest) -> Result<()> {
    guest.run("write", "bystander")?;
    guest.run("write", "poisoned")?;
    let (vault, offsets) = find(guest, "poisoned")?;
    poison(&vault, offsets[0])?;
    guest.run("fails", "poisoned")?;
    let incident = newest(guest, "poison")?;
    ensure!(
        incident["outcome"] == "lost" && incident["domain"] == "poisoned",
        "not a loss in that domain: {incident}"
    );
    guest.run("refused", "poisoned")?;
    guest.run("read", "bystander")?;
    Ok(())
}

fn poisoned_pool(guest: &mut Guest) -> Result<()> {
    guest.run("write", "bystander")?;
    guest.run("write", "pooled")?;
    // Frames are not wiped when they are free, and those that were freed last are taken first.
    let pool = vault::open_pool(guest.pid())?;
    for offset in frames_of(&pool, "pooled")? {
        poison(&pool, offset)?;
    }
    guest.run("write until done", "pooled")?;
    ensure!(
        guest.log()?.contains("of the pool is broken"),
        "nobody has touched the broken frames"
    );
    guest.run("read", "pooled")?;
    guest.run("read", "bystander").map(drop)
}

fn poisoned_commit(guest: &mut Guest) -> Result<()> {
    guest.run("write", "bystander")?;
    guest.run("begin a commit", "unsealed")?;
    let pool = vault::open_pool(guest.pid())?;
    for offset in frames_of(&pool, "unsealed")? {
        poison(&pool, offset)?;
    }
    guest.run("end a commit", "unsealed")?;
    let incident = newest(guest, "poison")?;
    ensure!(
        incident["outcome"] == "lost" && incident["domain"] == "unsealed",
        "not a loss in that domain: {incident}"
    );
    guest.run("refused", "unsealed")?;
    guest.run("read", "bystander").map(drop)
}

fn status(guest: &Guest) -> Result<Value> {
    guest.recovery_status()
}

fn newest(guest: &Guest, kind: &str) -> Result<Value> {
    let incident = guest.incidents(kind)?.pop();
    incident.with_context(|| format!("no incident of kind {kind}"))
}

/// Flips a bit of a frame in the memory of the VMM.
fn flip(vault: &File, offset: u64) -> Result<()> {
    let at = offset + u64::from(PAGE_SIZE) - 1;
    let mut byte = [0];
    vault.read_exact_at(&mut byte, at)?;
    vault.write_all_at(&[byte[0] ^ 4], at)?;
    Ok(())
}

/// Makes the host's kernel treat the memory of a frame as broken.
fn poison(vault: &File, offset: u64) -> Result<()> {
    vault::poison(vault, offset).context("poison a frame")
}

/// The file of the vault in the VMM, and the offsets of all frames that hold a page of the value, at least one.
fn find(guest: &Guest, key: &str) -> Result<(File, Vec<u64>)> {
    let vault = vault::open(guest.pid())?;
    let offsets = frames_of(&vault, key)?;
    Ok((vault, offsets))
}

/// The offsets of all frames of a region that hold a page of the value, at least one.
fn frames_of(region: &File, key: &str) -> Result<Vec<u64>> {
    let mark = mark(key);
    let mut page = vec![0; PAGE_SIZE as usize];
    let mut offsets = Vec::new();
    for offset in (0..region.metadata()?.size()).step_by(page.len()) {
        // Memory that an earlier behaviour has poisoned cannot be read.
        if region.read_exact_at(&mut page, offset).is_ok() && page.starts_with(&mark) {
            offsets.push(offset);
        }
    }
    ensure!(!offsets.is_empty(), "no frame holds a page of {key}");
    Ok(offsets)
}

fn mark(key: &str) -> Vec<u8> {
    [MARK, key.as_bytes(), b";"].concat()
}

fn open(key: &str) -> Result<&'static Domain> {
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open(APP) }?;
    let options = DomainOptions {
        mirror: key.starts_with("mirrored"),
    };
    Ok(app.domain_with(key, options)?)
}

/// The value: pages that start with the mark and are filled with a constant byte.
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
        // SAFETY: a new block of that size.
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

/// Writes the value again, in requests of which those may fail that get a broken frame.
fn write_until_done(key: &str) -> Result<()> {
    let domain = open(key)?;
    let value = value(key);
    for _ in 0..TRIES {
        let result = domain.run(|request| {
            let root = request.root::<u8>().ok_or(Error::NotHeld)?;
            // SAFETY: the block that `write` allocated, of that size.
            unsafe {
                root.as_ptr()
                    .copy_from_nonoverlapping(value.as_ptr(), LENGTH)
            };
            Ok::<_, Error>(())
        });
        match result {
            Ok(()) => return Ok(domain.app().flush()?),
            Err(RunError::Failed(failure)) => println!("{failure}"),
            Err(error) => return Err(error.into()),
        }
    }
    bail!("no request could write")
}

/// Where the processes of a commit tell each other how far they are.
const WRITTEN: &str = "/tmp/written";
const BROKEN: &str = "/tmp/broken";
const COMMITTED: &str = "/tmp/committed";

/// Starts a process with a request that has written the value.
fn begin_commit(key: &str) -> Result<()> {
    fs::create_dir_all("/tmp")?;
    steps::command(POISONED_COMMIT.name, "commit", key)?
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    wait_for(WRITTEN).map(drop)
}

/// Writes the value, and commits it when its memory is broken.
fn commit(key: &str) -> Result<()> {
    let domain = open(key)?;
    let value = value(key);
    let options = Options {
        seal: true,
        ..Options::default()
    };
    let result = domain.run_with(&options, |request| {
        let block = request.domain().allocate(LENGTH, PAGE_SIZE as usize)?;
        // SAFETY: a new block of that size.
        unsafe {
            block
                .as_ptr()
                .copy_from_nonoverlapping(value.as_ptr(), LENGTH)
        };
        request.set_root(Some(block))?;
        if fs::write(WRITTEN, "").is_err() || wait_for(BROKEN).is_err() {
            return Err(Error::NotHeld);
        }
        Ok::<_, Error>(())
    });
    let damaged = |error: &Error| matches!(error, Error::Damaged { domain: lost } if *lost == domain.number());
    let found = match result {
        Err(RunError::Refused(error)) if damaged(&error) => "damaged".to_owned(),
        result => format!("{result:?}"),
    };
    fs::write("/tmp/committing", found)?;
    Ok(fs::rename("/tmp/committing", COMMITTED)?)
}

/// Lets the request commit, which says that the host has lost its content.
fn end_commit(_: &str) -> Result<()> {
    fs::write(BROKEN, "")?;
    let found = wait_for(COMMITTED)?;
    ensure!(found == "damaged", "the commit's result: {found}");
    Ok(())
}

/// Waits for a file and reads it.
fn wait_for(file: &str) -> Result<String> {
    let start = Instant::now();
    loop {
        match fs::read_to_string(file) {
            Ok(text) => return Ok(text),
            Err(error) => ensure!(start.elapsed() < EVENT_LIMIT, "wait for {file}: {error}"),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Reads the value in a request.
fn look(key: &str) -> Result<Result<Vec<u8>, RunError<Error>>> {
    let domain = open(key)?;
    let mut seen = Vec::with_capacity(LENGTH);
    let result = domain.run(|request| {
        let root = request.root::<u8>().ok_or(Error::NotHeld)?;
        // SAFETY: the block that `write` allocated, of that size.
        let block = unsafe { std::slice::from_raw_parts(root.as_ptr(), LENGTH) };
        seen.extend_from_slice(block);
        Ok::<_, Error>(())
    });
    Ok(result.map(|()| seen))
}

fn read(key: &str) -> Result<()> {
    let seen = look(key)??;
    ensure!(seen == value(key), "the value is not what was committed");
    Ok(())
}

/// A domain with a lost page cannot be opened.
fn refused(key: &str) -> Result<()> {
    match look(key) {
        Err(error) if matches!(error.downcast_ref(), Some(Error::Damaged { .. })) => Ok(()),
        result => bail!("opened a damaged domain: {result:?}"),
    }
}

/// A request that accesses the lost page fails.
fn fails(key: &str) -> Result<()> {
    match look(key)? {
        Err(RunError::Failed(failure)) if failure.kind == Kind::Damaged => Ok(()),
        result => bail!("read a page of broken memory: {result:?}"),
    }
}

/// The lost page, at the address that the host reports, is inaccessible; the page next to it is not.
fn unreachable(address: &str) -> Result<()> {
    let lost: usize = address.parse()?;
    let app = raw::App::open(APP)?;
    app.domain("plain", 4)?;
    let (receiver, sender) = std::io::pipe()?;
    for (address, expected) in [(lost, false), (lost + PAGE_SIZE as usize, true)] {
        // When the kernel reads the page for this process, it returns EFAULT instead of a signal.
        // SAFETY: the kernel checks the address.
        let sent = unsafe { libc::write(sender.as_raw_fd(), address as *const _, 64) };
        ensure!(
            (sent == 64) == expected,
            "write(2) from {address:#x} returned {sent}: {}",
            std::io::Error::last_os_error()
        );
    }
    drop(receiver);
    Ok(())
}
