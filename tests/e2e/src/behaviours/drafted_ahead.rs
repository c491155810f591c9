//! What the driver expects of the next requests: pages that become drafts before they are written, since each request
//! writes them or they follow, and pages that are mapped with their commit, since they will be read.

use anyhow::{Context, Result, ensure};
use vmsrs_protocol::incident::KIND_INVARIANT;

use crate::host::Guest;
use crate::raw::{App, Domain, Thread, peek, poke};
use crate::{Behaviour, Machine};

const PAGES: u32 = 64;

/// Pages that each request writes; none follows another.
const HOT: [usize; 3] = [2, 11, 40];

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "drafts_made_ahead_are_kept_only_if_written",
    machine: Machine::Usual,
    steps: &[
        ("hot", hot),
        ("following", following),
        ("reads", reads),
        ("fail", fail),
    ],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run_steps(&["hot", "following", "reads"])?;
    let incident = guest.run("fail", "")?;
    let facts = guest.incident(incident.trim())?;
    let drafts = facts["request"]["drafts"]
        .as_array()
        .context("the incident's drafts")?;
    ensure!(
        drafts.len() == 1,
        "what was not written is evidence: {facts}"
    );
    Ok(())
}

/// A domain of [`PAGES`] pages, of which each holds its number.
struct Pages<'a> {
    app: &'a App,
    thread: &'a Thread<'a>,
    domain: Domain,
    first: *mut u8,
}

impl<'a> Pages<'a> {
    fn new(app: &'a App, thread: &'a Thread<'a>, key: &str) -> Result<Self> {
        let (domain, first) = app.domain(key, PAGES)?;
        let pages = Self {
            app,
            thread,
            domain,
            first,
        };
        let tag = thread.begin(&[domain])?;
        (0..PAGES as usize).for_each(|page| pages.write(page, page as u8));
        thread.commit(tag, vmsrs_protocol::ioctl::COMMIT_SEAL)?;
        thread.end()?;
        Ok(pages)
    }

    fn write(&self, page: usize, value: u8) {
        // SAFETY: the page is the domain's, which the request holds.
        unsafe { poke(self.first.add(page * 4096 + page), value) };
    }

    fn read(&self, page: usize) -> u8 {
        // SAFETY: the page is readable by the whole process.
        unsafe { peek(self.first.add(page * 4096 + page)) }
    }

    /// Writes to the pages one after the other, in a request that is not over. Returns its tag, and the number
    /// of page faults that made a draft.
    fn begin(&self, pages: &[usize], value: u8) -> Result<(u64, u64)> {
        let before = self.app.info()?.write_faults;
        let tag = self.thread.begin(&[self.domain])?;
        pages.iter().for_each(|&page| self.write(page, value));
        Ok((tag, self.app.info()?.write_faults - before))
    }

    fn commit(&self, tag: u64) -> Result<()> {
        self.thread.commit(tag, 0)?;
        Ok(self.thread.end()?)
    }

    /// Writes to the hot pages until one fault makes drafts of all of them. Batches that are sent in between
    /// can put that off.
    fn heat(&self) -> Result<()> {
        for value in 0..u16::MAX {
            let (tag, faults) = self.begin(&HOT, value as u8)?;
            self.commit(tag)?;
            if faults == 1 {
                return Ok(());
            }
        }
        anyhow::bail!("pages that each request writes are never drafted ahead")
    }

    /// Starts a request that has the hot pages as drafts and has written the first of them alone.
    fn begin_hot(&self, value: u8) -> Result<u64> {
        self.heat()?;
        let (tag, _) = self.begin(&HOT[..1], value)?;
        ensure!(
            self.thread.written_pages().len() == HOT.len(),
            "not every draft is listed for the audit: {:?}",
            self.thread.written_pages()
        );
        Ok(tag)
    }
}

fn hot(_: &str) -> Result<()> {
    let app = App::open("ahead")?;
    let thread = app.thread()?;
    let pages = Pages::new(&app, &thread, "hot")?;

    let tag = pages.begin_hot(200)?;
    pages.write(HOT[2], 201);
    let between = pages.read(HOT[1]);
    pages.commit(tag)?;
    ensure!(app.info()?.drafts == 0, "a draft is left after the commit");
    ensure!(
        pages.read(HOT[0]) == 200 && pages.read(HOT[2]) == 201,
        "a write to a page that was drafted ahead is lost"
    );
    ensure!(
        pages.read(HOT[1]) == between,
        "a page changed that nobody wrote"
    );
    let (tag, faults) = pages.begin(&HOT, 202)?;
    ensure!(
        faults == 2,
        "{faults} faults: the page that was left out is to be drafted at its own write"
    );
    pages.commit(tag)?;

    let tag = pages.begin_hot(210)?;
    let before = pages.read(HOT[1]);
    thread.discard(tag)?;
    thread.end()?;
    ensure!(app.info()?.drafts == 0, "a draft is left after the discard");
    ensure!(
        pages.read(HOT[0]) == before && pages.read(HOT[1]) == before,
        "a discard has not restored the committed version"
    );
    app.flush()?;
    for page in (0..PAGES as usize).filter(|page| !HOT.contains(page)) {
        ensure!(pages.read(page) == page as u8, "page {page} has changed");
    }
    Ok(())
}

fn following(_: &str) -> Result<()> {
    let app = App::open("ahead")?;
    let thread = app.thread()?;
    let pages = Pages::new(&app, &thread, "following")?;
    let row: Vec<usize> = (3..38).collect();
    let before = app.info()?.sealed_pages;
    let (tag, faults) = pages.begin(&row, 250)?;
    ensure!(
        faults < row.len() as u64 / 3,
        "{faults} faults for {} pages in a row",
        row.len()
    );
    ensure!(
        app.info()?.drafts > row.len() as u32,
        "nothing was drafted ahead at the end of the row"
    );
    pages.commit(tag)?;
    app.flush()?;
    let sealed = app.info()?.sealed_pages - before;
    ensure!(
        sealed == row.len() as u64,
        "{sealed} pages were sealed, {} were written",
        row.len()
    );
    for page in 0..PAGES as usize {
        let expected = match row.contains(&page) {
            true => 250,
            false => page as u8,
        };
        ensure!(pages.read(page) == expected, "page {page} has changed");
    }
    Ok(())
}

/// Page faults of the calling thread so far.
fn faults() -> Result<i64> {
    // SAFETY: a C struct of numbers, which the call fills.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let result = unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    ensure!(result == 0, "{}", std::io::Error::last_os_error());
    Ok(usage.ru_minflt)
}

/// Commits after which the driver has learnt whether they are read.
const COMMITS: usize = 160;

impl Pages<'_> {
    /// Commits a page and reads it at once. Returns the page faults of the read, or `None` if a batch was sent meanwhile, whose
    /// answer unmaps pages.
    fn commit_and_read(&self, page: usize, value: u8) -> Result<Option<i64>> {
        let batches = || -> Result<u64> { Ok(self.app.info()?.seal_messages) };
        self.app.flush()?;
        let batches_before = batches()?;
        self.commit_page(page, value)?;
        let before = faults()?;
        ensure!(self.read(page) == value, "page {page} is not as committed");
        let after = faults()?;
        Ok((batches()? == batches_before).then_some(after - before))
    }

    fn commit_page(&self, page: usize, value: u8) -> Result<()> {
        let (tag, _) = self.begin(&[page], value)?;
        self.commit(tag)
    }

    /// A row of commits, neither of neighbours nor of the same page, for which other predictions are made.
    fn commits(&self, commit: impl Fn(usize, u8) -> Result<()>) -> Result<()> {
        for number in 0..COMMITS {
            commit(number * 7 % PAGES as usize, number as u8)?;
            if number % 8 == 7 {
                self.app.flush()?;
            }
        }
        Ok(self.app.flush()?)
    }

    /// The page faults of a read after commits that nobody reads.
    fn faults_after_unread(&self) -> Result<i64> {
        for _ in 0..100 {
            self.commits(|page, value| self.commit_page(page, value))?;
            if let Some(faults) = self.commit_and_read(5, 250)? {
                return Ok(faults);
            }
        }
        anyhow::bail!("batches are sent all the time")
    }
}

fn reads(_: &str) -> Result<()> {
    let app = App::open("ahead")?;
    let thread = app.thread()?;
    let pages = Pages::new(&app, &thread, "reads")?;

    ensure!(
        pages.faults_after_unread()? == 1,
        "after {COMMITS} commits that nobody has read, the next one is still mapped"
    );
    // The fault has started the mapping again. If it came late, the next one has.
    let faults = std::cell::Cell::new(0);
    pages.commits(|page, value| {
        let found = pages.commit_and_read(page, value)?;
        faults.set(faults.get() + found.unwrap_or(0));
        Ok(())
    })?;
    ensure!(
        faults.get() <= 1,
        "{} faults of reads right after their commits",
        faults.get()
    );
    Ok(())
}

fn fail(_: &str) -> Result<()> {
    let app = App::open("ahead")?;
    let thread = app.thread()?;
    let pages = Pages::new(&app, &thread, "fail")?;
    let tag = pages.begin_hot(220)?;
    let before = pages.read(HOT[1]);
    let fail = thread.fail(tag, KIND_INVARIANT, 0)?;
    thread.end()?;
    ensure!(
        fail.drafts == 1,
        "the failure has cost {} drafts, one page was written",
        fail.drafts
    );
    ensure!(app.info()?.drafts == 0, "a draft is left after the failure");
    ensure!(
        HOT.iter().all(|&page| pages.read(page) == before),
        "a page is not as committed"
    );
    app.flush()?;
    println!("{}", fail.incident);
    Ok(())
}
