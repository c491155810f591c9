//! Discard restores on demand.

use anyhow::{Result, ensure};
use vmsrs_protocol::incident::KIND_INVARIANT;

use crate::host::Guest;
use crate::raw::{App, Thread, peek, poke};
use crate::{Behaviour, Machine};

/// Pages that the request writes.
const PAGES: u32 = 32;

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "discard_restores_committed_version",
    machine: Machine::Usual,
    steps: &[("discard", discard), ("fail", fail)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run("discard", "")?;
    let incident: u64 = guest.run("fail", "")?.trim().parse()?;
    let facts = guest.incident(&incident.to_string())?;
    ensure!(
        facts["kind"] == "invariant",
        "the host keeps the incident: {facts}"
    );
    let drafts = facts["request"]["drafts"].as_array().map_or(0, Vec::len);
    ensure!(
        drafts == PAGES as usize,
        "every dropped draft is evidence: {facts}"
    );
    Ok(())
}

/// Commits 1 in every page, overwrites with 2, drops that with `drop`, and looks.
fn check(key: &str, drop: impl Fn(&Thread<'_>, u64) -> Result<()>) -> Result<()> {
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
    ensure!(all(2), "the request sees what it wrote");
    ensure!(thread.drafts() == PAGES, "a draft a page");
    drop(&thread, tag)?;
    ensure!(all(1), "every page is as it was committed");
    ensure!(app.info()?.drafts == 0, "no draft is left");
    thread.end()?;

    // The domain works on.
    let tag = thread.begin(&[domain])?;
    fill(3);
    thread.commit(tag, 0)?;
    thread.end()?;
    ensure!(all(3), "the next request's writes are committed");
    // Reports go by the same way as commits: the host has them afterwards.
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
            "the driver tells the number of drafts"
        );
        println!("{}", failure.incident);
        Ok(())
    })
}
