//! A seal batch is sent when it is due or on request. It has each page once, in its newest version, however often the page
//! was committed since the last batch.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vmsrs_protocol::PAGE_SIZE;
use vmsrs_protocol::ioctl::COMMIT_SEAL;
use vmsrs_protocol::shared::HELD_MAX;

use crate::raw::{App, Domain, Thread};
use crate::{Behaviour, Machine};

/// Batches on request, and by the driver's timer.
pub(super) const BATCHES: Behaviour = Behaviour {
    name: "seal_batch_is_sent_when_full_or_due_or_requested",
    machine: Machine::Usual,
    steps: &[("batches", batches), ("neighbours", neighbours)],
    host: |guest| guest.run_steps(&["batches", "neighbours"]),
};

/// Pages that are committed again and again.
pub(super) const COALESCED: Behaviour = Behaviour {
    name: "page_committed_many_times_is_sealed_once_and_newest",
    machine: Machine::Usual,
    steps: &[("alone", alone), ("in flight", in_flight)],
    host: |guest| {
        guest.run_steps(&["alone", "in flight"])?;
        // The driver's idea of a version's content is the host's.
        let found = guest.control().query(&["scrub", "--app", "coalesced"])?;
        ensure!(found["damaged"] == 0, "content is lost: {found}");
        Ok(())
    },
};

/// Pages of a commit that needs several messages: a message has 256 records.
const PAGES: u32 = 400;
/// Commits in a burst.
const COMMITS: u64 = 500;
/// The shortest time for which the driver collects a batch that is not full: 50 ms, less up to one jiffy.
const BATCH_DELAY: Duration = Duration::from_millis(40);

fn batches(_: &str) -> Result<()> {
    let app = App::open("seal-batches")?;
    let (domain, page) = app.domain("user", PAGES)?;
    let thread = app.thread()?;
    let write = |flags| thread.commit_byte(domain, page, 1, flags);

    // On request.
    let before = app.info()?;
    write(COMMIT_SEAL)?;
    ensure!(
        app.info()?.sealed_pages == before.sealed_pages + 1,
        "the page is not sealed when the commit returns"
    );
    write(0)?;
    app.flush()?;
    ensure!(
        app.info()?.unsealed == 0,
        "pages are unsealed after a flush"
    );

    // A short time after its first record, by the driver's own timer.
    write(0)?;
    while app.info()?.unsealed != 0 {
        thread::yield_now();
    }

    // In several messages when one has no room for it.
    let before = app.info()?;
    commit_all(&thread, domain, page, PAGES, 1)?;
    app.flush()?;
    let after = app.info()?;
    ensure!(
        after.sealed_pages == before.sealed_pages + u64::from(PAGES),
        "not every page is sealed once: {before:?}, {after:?}"
    );
    ensure!(
        after.seal_messages >= before.seal_messages + 2,
        "one message had room for {PAGES} records"
    );
    Ok(())
}

/// Pages of many domains that lie next to each other in the window: they are unmapped together when they are sealed.
fn neighbours(_: &str) -> Result<()> {
    let app = App::open("seal-neighbours")?;
    let domains = (0..HELD_MAX)
        .map(|number| app.domain(&format!("user {number}"), 1))
        .collect::<Result<Vec<_>>>()?;
    let thread = app.thread()?;
    app.flush()?;
    let before = app.info()?;
    let list: Vec<Domain> = domains.iter().map(|&(domain, _)| domain).collect();
    let tag = thread.begin(&list)?;
    // The order in which they are written makes no difference.
    for &(_, page) in domains.iter().rev() {
        // SAFETY: the pages are the domains', which the request holds.
        unsafe { page.write_volatile(1) };
    }
    thread.commit(tag, 0)?;
    thread.end()?;
    app.flush()?;
    let after = app.info()?;
    let domains = domains.len() as u64;
    ensure!(
        after.sealed_pages - before.sealed_pages == domains,
        "not every page is sealed once: {before:?}, {after:?}"
    );
    // The commit unmaps the draft of each domain.
    let zaps = after.zaps - before.zaps;
    ensure!(
        zaps <= domains + domains / 8,
        "pages were unmapped {zaps} times for {domains} domains"
    );
    Ok(())
}

/// A request that writes the same number to the start of each page.
fn commit_all(
    thread: &Thread<'_>,
    domain: Domain,
    first: *mut u8,
    pages: u32,
    value: u64,
) -> Result<()> {
    let tag = thread.begin(&[domain])?;
    for page in 0..pages {
        // SAFETY: the pages are the domain's, which the request holds.
        unsafe { word(first, page).write_volatile(value) };
    }
    thread.commit(tag, 0)?;
    Ok(thread.end()?)
}

fn word(first: *mut u8, page: u32) -> *mut u64 {
    first.wrapping_add((page * PAGE_SIZE) as usize).cast()
}

fn alone(_: &str) -> Result<()> {
    let app = App::open("coalesced")?;
    let (domain, page) = app.domain("alone", 4)?;
    let thread = app.thread()?;
    app.flush()?;
    let before = app.info()?;
    let start = Instant::now();
    for value in 1..=COMMITS {
        commit_all(&thread, domain, page, 1, value)?;
    }
    app.flush()?;
    let elapsed = start.elapsed();
    let after = app.info()?;
    ensure!(
        after.commits - before.commits == COMMITS,
        "not every commit is counted"
    );
    let messages = after.seal_messages - before.seal_messages;
    ensure!(
        after.sealed_pages - before.sealed_pages == messages,
        "a batch had the page more than once, or not at all: {before:?}, {after:?}"
    );
    // One on request; on a slow machine the timer sends some before.
    let by_timer = elapsed.as_micros() / BATCH_DELAY.as_micros();
    ensure!(
        u128::from(messages) <= 1 + by_timer,
        "{messages} messages for {COMMITS} commits within {elapsed:?}"
    );
    // SAFETY: the page is readable by the whole process.
    let found = unsafe { word(page, 0).read_volatile() };
    ensure!(found == COMMITS, "version {found} was sealed");
    Ok(())
}

/// A page is committed again and again while batches that have it are in flight.
fn in_flight(_: &str) -> Result<()> {
    const ROUNDS: u64 = 300;
    let app = App::open("coalesced")?;
    let (hot, hot_page) = app.domain("hot", 4)?;
    let (other, other_page) = app.domain("other", 4)?;
    let stop = AtomicBool::new(false);
    let (address, stop) = (other_page.expose_provenance(), &stop);
    let app = &app;
    let before = app.info()?;
    let commits = thread::scope(|scope| -> Result<u64> {
        let sealer = scope.spawn(move || -> Result<u64> {
            let thread = app.thread()?;
            let page = std::ptr::with_exposed_provenance_mut::<u8>(address);
            let mut commits = 0;
            while !stop.load(Ordering::Relaxed) {
                thread.commit_byte(other, page, 1, COMMIT_SEAL)?;
                commits += 1;
            }
            Ok(commits)
        });
        let thread = app.thread()?;
        let written = (1..=ROUNDS).try_for_each(|value| -> Result<()> {
            commit_all(&thread, hot, hot_page, 2, value)?;
            for page in 0..2 {
                // SAFETY: the pages are readable by the whole process.
                let found = unsafe { word(hot_page, page).read_volatile() };
                ensure!(found == value, "page {page} has {found}, expected {value}");
            }
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        let commits = sealer.join().ok().context("the other thread panicked")??;
        written?;
        Ok(commits)
    })?;
    app.flush()?;
    for page in 0..2 {
        // SAFETY: the pages are readable by the whole process.
        let found = unsafe { word(hot_page, page).read_volatile() };
        ensure!(found == ROUNDS, "version {found} of page {page} was sealed");
    }
    let after = app.info()?;
    let sealed = after.sealed_pages - before.sealed_pages;
    ensure!(
        after.unsealed == 0 && after.drafts == 0 && sealed <= commits + 2 * ROUNDS,
        "{before:?}, {after:?}"
    );
    Ok(())
}
