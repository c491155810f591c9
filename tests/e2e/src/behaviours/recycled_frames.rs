//! Frames go quickly from one domain to another. No page ever shows what its frame held before.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::process::Child;

use anyhow::{Context, Result, ensure};
use vmsrs_protocol::PAGE_SIZE;
use vmsrs_protocol::ioctl::COMMIT_SEAL;

use crate::random::Random;
use crate::raw::{App, Domain, Thread};
use crate::steps;
use crate::{Behaviour, Machine};

/// Processes that write look at every byte of a page before they write it.
pub(super) const STRANGERS: Behaviour = Behaviour {
    name: "drafts_and_fresh_pages_show_no_foreign_bytes",
    machine: Machine::Usual,
    steps: &[("strangers", strangers), ("stranger", stranger)],
    host: |guest| guest.run_steps(&["strangers"]),
};

/// A process reads, without a lock, what others write.
pub(super) const READERS: Behaviour = Behaviour {
    name: "reader_sees_committed_versions_of_its_page_only",
    machine: Machine::Usual,
    steps: &[("readers", readers), ("writer", writer)],
    host: |guest| guest.run_steps(&["readers"]),
};

/// Processes, each with a domain of its own.
const PROCESSES: u64 = 3;
/// Pages of a domain.
const PAGES: u32 = 32;
/// Requests of each process that looks at its pages.
const REQUESTS: u64 = 150;
/// Words in a page.
const WORDS: usize = PAGE_SIZE as usize / size_of::<u64>();

/// What a request writes to each word of a page: which domain it is, and how many commits the page has had.
fn pattern(domain: u64, version: u64) -> u64 {
    (domain + 1) << 48 | version
}

fn word(first: *mut u64, page: usize, word: usize) -> *mut u64 {
    first.wrapping_add(page * WORDS + word)
}

fn seed() -> u64 {
    RandomState::new().build_hasher().finish() | 1
}

fn start(step: &str, behaviour: &Behaviour, argument: &str) -> Result<Child> {
    steps::command(behaviour.name, step, argument)?
        .spawn()
        .context("start a process")
}

fn strangers(_: &str) -> Result<()> {
    let seed = seed();
    let processes: Vec<_> = (0..PROCESSES)
        .map(|number| {
            let argument = format!("{number} {}", seed.wrapping_mul(2 * number + 1));
            start("stranger", &STRANGERS, &argument)
        })
        .collect::<Result<_>>()?;
    for mut process in processes {
        let status = process.wait()?;
        ensure!(status.success(), "seed {seed}: {status}");
    }
    let app = App::open("strangers")?;
    app.drain()
}

/// Writes random pages of its domain. Before each write it reads the whole page, and again after the first word of it is
/// written; then it writes the rest, or leaves it. About half of the requests drop what they wrote.
fn stranger(argument: &str) -> Result<()> {
    let (number, seed) = argument.split_once(' ').context("number and seed")?;
    let number: u64 = number.parse()?;
    let mut random = Random(seed.parse()?);
    let app = App::open("strangers")?;
    let (domain, first) = app.domain(&format!("stranger {number}"), PAGES)?;
    let first = first.cast::<u64>();
    let thread = app.thread()?;
    // What each page's words must be.
    let mut committed = vec![[0u64; WORDS]; PAGES as usize];
    for request in 0..REQUESTS {
        let tag = thread.begin(&[domain])?;
        let mut drafts = committed.clone();
        for _ in 0..=random.below(12) {
            // Most of the time one of the first pages, so that the others stay fresh for long.
            let limit = 1 + random.below(PAGES.into());
            let page = random.below(limit) as usize;
            let place = random.below(WORDS as u64) as usize;
            let draft = &mut drafts[page];
            let check = |draft: &[u64; WORDS], when: &str| -> Result<()> {
                for (at, &expected) in draft.iter().enumerate() {
                    // SAFETY: the page is the domain's, which the request holds.
                    let found = unsafe { word(first, page, at).read_volatile() };
                    ensure!(
                        found == expected,
                        "request {request}, page {page}, word {at}, {when}: {found:#x}, \
                         expected {expected:#x}"
                    );
                }
                Ok(())
            };
            let value = pattern(number, request + 1);
            let write = |draft: &mut [u64; WORDS], at: usize| {
                draft[at] = value;
                // SAFETY: as above.
                unsafe { word(first, page, at).write_volatile(value) };
            };
            check(draft, "before the write")?;
            write(draft, place);
            check(draft, "after one write")?;
            if random.below(2) == 0 {
                (0..WORDS).for_each(|at| write(draft, at));
            }
        }
        match random.below(8) {
            0 => thread.commit(tag, COMMIT_SEAL)?,
            1..4 => thread.commit(tag, 0)?,
            _ => {
                thread.discard(tag)?;
                drafts = committed;
            }
        }
        committed = drafts;
        thread.end()?;
    }
    Ok(())
}

/// Commits of each process while one reads.
const VERSIONS: u64 = 400;
/// Pages that a writer writes in each request.
const READ_PAGES: usize = 3;

fn readers(_: &str) -> Result<()> {
    let app = App::open("readers")?;
    // What is refused must not count as the end of a mapping: the last writer would be taken for the only process.
    app.try_to_move()?;
    let domains: Vec<*mut u64> = (0..PROCESSES)
        .map(|number| Ok(app.domain(&format!("read {number}"), 4)?.1.cast()))
        .collect::<Result<_>>()?;
    let mut writers: Vec<Child> = (0..PROCESSES)
        .map(|number| start("writer", &READERS, &number.to_string()))
        .collect::<Result<_>>()?;
    let mut seen = vec![[0u64; READ_PAGES]; domains.len()];
    let mut rounds = 0u64;
    loop {
        let mut running = 0;
        for writer in &mut writers {
            running += usize::from(writer.try_wait()?.is_none());
        }
        for (number, &first) in (0..).zip(&domains) {
            let seen = &mut seen[number as usize];
            for (page, newest) in seen.iter_mut().enumerate() {
                for at in 0..WORDS {
                    // SAFETY: the page is readable by the whole process.
                    let found = unsafe { word(first, page, at).read_volatile() };
                    let version = found ^ pattern(number, 0);
                    ensure!(
                        found == 0 && *newest == 0 || (*newest..=VERSIONS).contains(&version),
                        "domain {number}, page {page}, word {at}: {found:#x} after version {newest}"
                    );
                    if found != 0 {
                        *newest = version;
                    }
                }
            }
        }
        rounds += 1;
        if running == 0 {
            break;
        }
    }
    for mut writer in writers {
        ensure!(writer.wait()?.success(), "a writer failed");
    }
    ensure!(
        seen.iter().flatten().all(|&newest| newest == VERSIONS),
        "not the newest versions after {rounds} rounds: {seen:?}"
    );
    Ok(())
}

/// Commits one version after another, each word of a page with the version's number, and drops a draft after each.
fn writer(argument: &str) -> Result<()> {
    let number: u64 = argument.parse()?;
    let app = App::open("readers")?;
    let (domain, first) = app.domain(&format!("read {number}"), 4)?;
    let thread = app.thread()?;
    let write = |value: u64| write_pages(&thread, domain, first.cast(), value);
    for version in 1..=VERSIONS {
        let tag = write(pattern(number, version))?;
        thread.commit(tag, if version % 16 == 0 { COMMIT_SEAL } else { 0 })?;
        thread.end()?;
        // No one may ever read this.
        let tag = write(u64::MAX)?;
        thread.discard(tag)?;
        thread.end()?;
    }
    Ok(())
}

fn write_pages(thread: &Thread<'_>, domain: Domain, first: *mut u64, value: u64) -> Result<u64> {
    let tag = thread.begin(&[domain])?;
    for page in 0..READ_PAGES {
        for at in 0..WORDS {
            // SAFETY: the pages are the domain's, which the request holds.
            unsafe { word(first, page, at).write_volatile(value) };
        }
    }
    Ok(tag)
}
