//! A first write makes a draft, and a commit publishes it.

use anyhow::{Result, ensure};

use crate::host::Guest;
use crate::raw::{App, peek, poke};
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "first_write_makes_draft_and_commit_publishes_it",
    machine: Machine::Usual,
    steps: &[("write", write), ("read", read)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    let sealed = |guest: &Guest| -> Result<u64> {
        let status = guest.control().status()?;
        Ok(status["recovery"]["sealed_frames"].as_u64().unwrap_or(0))
    };
    let before = sealed(guest)?;
    guest.run("write", "")?;
    ensure!(
        sealed(guest)? == before + 1,
        "one page more is sealed on the host"
    );
    guest.run("read", "")?;
    Ok(())
}

fn write(_: &str) -> Result<()> {
    let app = App::open("draft-and-commit")?;
    let (domain, page) = app.domain("user", 4)?;
    let thread = app.thread()?;
    let before = app.info()?;

    let tag = thread.begin(&[domain])?;
    ensure!(thread.drafts() == 0, "nothing written, no draft");
    // SAFETY: the page is the domain's, which the request holds.
    unsafe {
        ensure!(peek(page) == 0, "a page that was never committed is zero");
        poke(page, 0x5a);
        poke(page.add(100), 0xa5);
        ensure!(peek(page) == 0x5a, "the request sees what it wrote");
    }
    ensure!(
        thread.drafts() == 1,
        "two writes to a page are one draft, not {}",
        thread.drafts()
    );
    ensure!(
        app.info()?.drafts == before.drafts + 1,
        "the driver counts the draft"
    );
    thread.commit(tag, vmsrs_protocol::ioctl::COMMIT_SEAL)?;
    thread.end()?;

    let after = app.info()?;
    ensure!(after.drafts == before.drafts, "a commit leaves no draft");
    ensure!(after.commits == before.commits + 1, "one commit");
    ensure!(
        after.sealed_pages == before.sealed_pages + 1,
        "one page sealed"
    );
    // SAFETY: the page is readable by the whole process.
    unsafe {
        ensure!(
            peek(page) == 0x5a && peek(page.add(100)) == 0xa5,
            "the commit is visible"
        )
    };
    Ok(())
}

/// Another process, later: the same app has the page at the same address.
fn read(_: &str) -> Result<()> {
    let app = App::open("draft-and-commit")?;
    let (_, page) = app.domain("user", 4)?;
    // SAFETY: the page is readable by the whole process.
    unsafe {
        ensure!(
            peek(page) == 0x5a && peek(page.add(100)) == 0xa5,
            "the commit outlives its process"
        )
    };
    Ok(())
}
