//! A corrupt control block, and more failures than the host can be told of, affect no other request.

use anyhow::{Context, Result, ensure};
use vmsrs_protocol::incident::KIND_INVARIANT;
use vmsrs_protocol::ioctl::COMMIT_SEAL;
use vmsrs_protocol::{MAX_DOMAINS, PAGE_SIZE};

use crate::fault::try_store;
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
    steps: &[("corrupt", corrupt), ("list", list), ("storm", storm)],
    host: |guest| guest.run_steps(&["corrupt", "list", "storm"]),
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

/// The process cannot write the list of written pages, nor make it writable.
fn list(_: &str) -> Result<()> {
    let app = App::open("control-block")?;
    let thread = app.thread()?;
    let (domain, first) = app.domain("list", 4)?;
    let tag = thread.begin(&[domain])?;
    let page = |place: usize| first.wrapping_add(place * PAGE_SIZE as usize);
    let number =
        |place: usize| ((page(place) as u64 - app.address(0) as u64) / u64::from(PAGE_SIZE)) as u32;
    for place in [2, 0] {
        // SAFETY: the page is the domain's, which the request holds.
        unsafe { poke(page(place), 1) };
    }
    let listed = || {
        let pages = thread.written_pages();
        ensure!(pages == [2, 0].map(number), "listed: {pages:?}");
        Ok(())
    };
    listed()?;
    let list = thread.written();
    for at in [0, 8, 16] {
        // SAFETY: faults.
        let stored = unsafe { try_store(list.cast::<u8>().wrapping_add(at), 0) };
        let fault = stored.err().context("a write to the list succeeds")?;
        ensure!(fault.signal == libc::SIGSEGV, "{fault:?}");
    }
    // SAFETY: changes nothing if it fails, as it must.
    let writable = unsafe {
        libc::mprotect(
            list.cast(),
            PAGE_SIZE as usize,
            libc::PROT_READ | libc::PROT_WRITE,
        )
    };
    ensure!(writable != 0, "the list can be made writable");
    listed()?;
    thread.commit(tag, 0)?;
    ensure!(thread.written_pages().is_empty(), "listed after the commit");
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
