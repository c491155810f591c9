//! A guest with a hostile kernel: whatever its driver sends is refused and counted. The device and the virtual machine
//! keep working, also for the regular driver afterwards.

mod chains;
mod engine;
mod frames;
mod messages;
mod registers;

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmsrs_protocol::device::{SHM_POOL, SHM_VAULT};
use vmsrs_protocol::ioctl::COMMIT_SEAL;

use crate::host::Guest;
use crate::hostile::Device;
use crate::raw::{App, peek, poke};
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "hostile_guest_is_refused_and_counted",
    machine: Machine::Hostile,
    steps: &[
        ("enter", enter),
        ("attack", attack),
        ("leave", leave),
        ("commit", commit),
    ],
    host,
};

/// What a hostile driver does to a running device; some attacks restart it.
type Attack = fn(&mut Device) -> Result<()>;

/// Attacks by name.
const ATTACKS: &[(&str, Attack)] = &[
    ("malformed chains", chains::malformed),
    ("messages of wrong length", messages::wrong_lengths),
    ("messages of unknown kinds", messages::unknown_kinds),
    ("short reply buffers", chains::short_replies),
    ("frames of others", messages::foreign_frames),
    ("records against stale frames", messages::stale_records),
    ("pages of other domains", messages::foreign_pages),
    ("duplicate frames and pages", messages::duplicates),
    ("long batches", messages::long_batches),
    ("messages in a batch", messages::messages_in_a_batch),
    ("false deletions", messages::false_deletions),
    ("huge counts", messages::huge_counts),
    ("false reports", messages::false_reports),
    ("chains in a loop", chains::loops),
    ("chains outside of memory", chains::outside_memory),
    ("huge indirect tables", chains::indirect_tables),
    ("heads out of range", chains::heads_out_of_range),
    ("an index far ahead", chains::index_far_ahead),
    ("spurious notifications", registers::spurious_notifications),
    ("unaligned register accesses", registers::unaligned_accesses),
    ("unknown regions", registers::unknown_regions),
    ("invalid queues", registers::invalid_queues),
    ("invalid statuses", registers::invalid_statuses),
    (RACE, chains::overlapping_rings),
    (
        "writes into every kind of frame",
        frames::every_kind_of_frame,
    ),
    ("unfinished batches", frames::unfinished_batches),
    (CHANGING, frames::changing_frames),
];

/// The attack that resets the device while it processes the rings: a device that sees the reset first has refused
/// nothing.
const RACE: &str = "overlapping rings";
/// The attack whose messages are all in order.
const CHANGING: &str = "frames that change while they are sealed";

/// Most lines that the VMM may have logged in the end, far fewer than there were attacks.
const LOG_LINES: usize = 120;

fn host(guest: &mut Guest) -> Result<()> {
    guest.run("commit", "before")?;
    guest.run_steps(&["enter"])?;
    for (name, _) in ATTACKS {
        let before = refused(&guest.control().status()?)?;
        guest
            .run("attack", name)
            .with_context(|| (*name).to_owned())?;
        let status = guest.control().status()?;
        ensure!(
            refused(&status)? > before || [RACE, CHANGING].contains(name),
            "{name}: no refusal was counted: {status}"
        );
    }
    // What the host keeps is its copy: sealed pages are as they were sealed, whatever the pool's frames held later.
    let found = guest.control().query(&["scrub", "--app", "hostile"])?;
    ensure!(
        found["damaged"] == 0 && found["repaired"] == 0,
        "a sealed page has changed: {found}"
    );
    guest.run_steps(&["leave"])?;
    guest.run("commit", "after")?;
    let log = guest.log()?;
    ensure!(
        log.lines().count() < LOG_LINES,
        "the guest has filled the log of the host:\n{log}"
    );
    Ok(())
}

/// The number of refusals and errors that the host has counted.
fn refused(status: &Value) -> Result<u64> {
    let lists = [&status["recovery"]["refusals"], &status["device_errors"]];
    let mut sum = 0;
    for list in lists {
        for count in list.as_array().context("a list of counts")? {
            sum += count["count"].as_u64().context("a count")?;
        }
    }
    Ok(sum)
}

fn shell(script: &str) -> Result<()> {
    let output = Command::new("sh").args(["-ec", script]).output()?;
    ensure!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Replaces the regular driver with the hostile one.
fn enter(_: &str) -> Result<()> {
    shell(
        "rmmod vmsrs
         mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug
         insmod /lib/modules/vmsrs_hostile.ko",
    )?;
    let mut device = Device::open()?;
    device.start()?;
    device.expect_working()?;
    let (pool, pool_length) = device.region(SHM_POOL)?;
    let (vault, vault_length) = device.region(SHM_VAULT)?;
    shell(&format!(
        "insmod /lib/modules/vmsrs_stray.ko pool={pool} pool_length={pool_length} \
         vault={vault} vault_length={vault_length}"
    ))
}

/// Brings the regular driver back.
fn leave(_: &str) -> Result<()> {
    shell("rmmod vmsrs_stray\nrmmod vmsrs_hostile\ninsmod /lib/modules/vmsrs.ko")
}

/// A regular request commits and is sealed; the commit made before the attacks is still there.
fn commit(when: &str) -> Result<()> {
    let app = App::open("bystander")?;
    let (domain, page) = app.domain("user", 4)?;
    // SAFETY: the page is readable by the whole process.
    let found = unsafe { peek(page.add(7)) };
    let (expected, value) = if when == "before" { (0, 1) } else { (1, 2) };
    ensure!(
        found == expected,
        "the committed byte is {found}, expected {expected}"
    );
    let thread = app.thread()?;
    let tag = thread.begin(&[domain])?;
    // SAFETY: the page is the domain's, which the request holds.
    unsafe { poke(page.add(7), value) };
    thread.commit(tag, COMMIT_SEAL)?;
    // SAFETY: as above.
    let found = unsafe { peek(page.add(7)) };
    ensure!(
        found == value,
        "the committed byte is {found}, expected {value}"
    );
    Ok(thread.end()?)
}

fn attack(name: &str) -> Result<()> {
    let (_, attack) = ATTACKS
        .iter()
        .find(|(known, _)| *known == name)
        .context("a known attack")?;
    let mut device = Device::open()?;
    device.start()?;
    attack(&mut device)?;
    device.expect_working()
}
