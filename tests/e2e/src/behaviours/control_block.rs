//! A corrupt control block, and more failures than the host can be told of, affect no other request.

use anyhow::{Result, ensure};
use vmsrs_protocol::incident::KIND_INVARIANT;
use vmsrs_protocol::ioctl::COMMIT_SEAL;
use vmsrs_protocol::{MAX_DOMAINS, PAGE_SIZE};

use crate::raw::{App, Thread, poke};
use crate::{Behaviour, Machine};

/// Requests that fail as fast as a thread can make them.
const FAILURES: u32 = 3000;
/// Commits of another app meanwhile.
const COMMITS: u8 = 20;

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "corrupt_control_block_and_failure_storm_stay_local",
    machine: Machine::Usual,
    steps: &[("corrupt", corrupt), ("count", count), ("storm", storm)],
    host: |guest| guest.run_steps(&["corrupt", "count", "storm"]),
};

/// Starts a request whose control block says that it holds `count` domains, all with this number, and fails it.
fn fail_with(thread: &Thread<'_>, count: u32, number: u32) -> Result<()> {
    let tag = thread.begin(&[])?;
    // SAFETY: the control block is mapped, and the driver must cope with anything in it.
    unsafe {
        (*thread.control()).held.fill(number);
        std::ptr::write_volatile(&raw mut (*thread.control()).held_count, count);
    }
    thread.fail(tag, KIND_INVARIANT, 0)?;
    // SAFETY: as above.
    unsafe {
        std::ptr::write_volatile(&raw mut (*thread.control()).held_count, 0);
        std::ptr::write_volatile(&raw mut (*thread.control()).tag, 0);
    }
    Ok(())
}

/// Commits `value` to the domain's page, and waits until it is sealed.
fn commit(app: &App, thread: &Thread<'_>, key: &str, value: u8) -> Result<()> {
    let (domain, page) = app.domain(key, 4)?;
    thread.commit_byte(domain, page, value, COMMIT_SEAL)
}

fn corrupt(_: &str) -> Result<()> {
    let app = App::open("control-block")?;
    let thread = app.thread()?;
    // Domains that do not exist, or cannot.
    for number in [MAX_DOMAINS - 1, MAX_DOMAINS, u32::MAX] {
        for count in [1, u32::MAX] {
            fail_with(&thread, count, number)?;
        }
    }
    let innocent = App::open("control-block-innocent")?;
    commit(&innocent, &innocent.thread()?, "user", 1)?;
    ensure!(app.info()?.broken == 0, "the device has stopped");
    Ok(())
}

/// Whatever a stray write makes of the count of drafts, the next draft increments it.
fn count(_: &str) -> Result<()> {
    let app = App::open("control-block")?;
    let thread = app.thread()?;
    let (domain, page) = app.domain("count", 4)?;
    let tag = thread.begin(&[domain])?;
    for (place, stray) in [0, 7, u32::MAX - 1, u32::MAX].into_iter().enumerate() {
        thread.set_drafts(stray);
        // SAFETY: the page is the domain's, which the request holds.
        unsafe { poke(page.wrapping_add(place * PAGE_SIZE as usize), 1) };
        ensure!(
            thread.drafts() == stray.saturating_add(1) && thread.drafts_match(),
            "{stray:#x} and a draft make {:#x}",
            thread.drafts()
        );
    }
    thread.commit(tag, 0)?;
    Ok(thread.end()?)
}

fn storm(_: &str) -> Result<()> {
    let app = App::open("control-block")?;
    let innocent = App::open("control-block-innocent")?;
    std::thread::scope(|scope| {
        let storm = scope.spawn(|| -> Result<()> {
            let thread = app.thread()?;
            (0..FAILURES).try_for_each(|_| fail_with(&thread, 0, 0))
        });
        let thread = innocent.thread()?;
        (0..COMMITS).try_for_each(|value| commit(&innocent, &thread, "user", value))?;
        storm.join().expect("the thread does not panic")
    })?;
    ensure!(app.info()?.broken == 0, "the device has stopped");
    Ok(())
}
