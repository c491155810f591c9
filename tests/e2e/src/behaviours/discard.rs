//! A discard restores the committed version of each page at its next access.

use anyhow::{Result, ensure};
use vmsrs_protocol::incident::KIND_INVARIANT;

use crate::host::Guest;
use crate::raw::{App, Thread, peek, poke};
use crate::{Behaviour, Machine};

/// Pages that the request writes to.
const PAGES: u32 = 32;

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "discard_restores_committed_version",
    machine: Machine::Usual,
    steps: &[("discard", discard), ("fail", fail)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run_steps(&["discard"])?;
    let incident = guest.run("fail", "")?;
    let facts = guest.incident(incident.trim())?;
    ensure!(
        facts["kind"] == "invariant",
        "not the incident that was reported: {facts}"
    );
    let drafts = facts["request"]["drafts"].as_array().map_or(0, Vec::len);
    ensure!(
        drafts == PAGES as usize,
        "not every discarded draft is evidence: {facts}"
    );
    Ok(())
}

/// Commits 1 in every page, overwrites it with 2, discards that with `discard`, and checks the pages.
fn check(key: &str, discard: impl Fn(&Thread<'_>, u64) -> Result<()>) -> Result<()> {
    let app = App::open("discard")?;
    let (domain, first) = app.domain(key, PAGES)?;
    let thread = app.thread()?;
    let fill = |value: u8| {
        for page in 0..PAGES as usize {
            // SAFETY: the pages are the domain's, which the request holds.
            unsafe { poke(first.add(page * 4096 + page), value) };
        }
    };
    let all = |value: u8| {
        // SAFETY: the pages are readable by the whole process.
        (0..PAGES as usize).all(|page| unsafe { peek(first.add(page * 4096 + page)) } == value)
    };
    let tag = thread.begin(&[domain])?;
    fill(1);
    thread.commit(tag, 0)?;
    thread.end()?;

    let tag = thread.begin(&[domain])?;
    fill(2);
    ensure!(all(2), "the request does not see its writes");
    ensure!(
        thread.written_pages().len() == PAGES as usize,
        "not one draft per page"
    );
    discard(&thread, tag)?;
    ensure!(all(1), "a page is not as committed");
    ensure!(app.info()?.drafts == 0, "a draft is left");
    thread.end()?;

    // The domain can be used as before.
    let tag = thread.begin(&[domain])?;
    fill(3);
    thread.commit(tag, 0)?;
    thread.end()?;
    ensure!(all(3), "the next request's writes were not committed");
    // Reports are queued with commits, so the host has them after a flush.
    Ok(app.flush()?)
}

fn discard(_: &str) -> Result<()> {
    check("given-up", |thread, tag| Ok(thread.discard(tag)?))
}

fn fail(_: &str) -> Result<()> {
    check("failed", |thread, tag| {
        let failure = thread.fail(tag, KIND_INVARIANT, 0)?;
        ensure!(
            failure.drafts == PAGES,
            "the driver reports {} drafts",
            failure.drafts
        );
        println!("{}", failure.incident);
        Ok(())
    })
}
