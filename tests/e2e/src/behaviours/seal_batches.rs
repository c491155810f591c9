//! A seal batch goes out when it is full, after a short time, or when asked.

use anyhow::{Result, ensure};
use vmsrs_protocol::ioctl::COMMIT_SEAL;

use crate::host::Guest;
use crate::raw::{App, Thread, poke};
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "seal_batch_is_sent_when_full_or_due_or_requested",
    machine: Machine::Usual,
    steps: &[("batches", batches)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run("batches", "").map(drop)
}

/// One request that writes one page.
fn write(thread: &Thread<'_>, domain: crate::raw::Domain, page: *mut u8, flags: u32) -> Result<()> {
    let tag = thread.begin(&[domain])?;
    // SAFETY: the page is the domain's, which the request holds.
    unsafe { poke(page, tag as u8) };
    thread.commit(tag, flags)?;
    Ok(thread.end()?)
}

fn batches(_: &str) -> Result<()> {
    let app = App::open("seal-batches")?;
    let (domain, page) = app.domain("user", 4)?;
    let thread = app.thread()?;

    // When asked.
    let before = app.info()?;
    write(&thread, domain, page, COMMIT_SEAL)?;
    ensure!(
        app.info()?.sealed_pages == before.sealed_pages + 1,
        "sealed on return"
    );
    write(&thread, domain, page, 0)?;
    app.flush()?;
    ensure!(app.info()?.unsealed == 0, "a flush leaves nothing unsealed");

    // After a short time, without being asked: the loop waits for the driver's own clock.
    write(&thread, domain, page, 0)?;
    while app.info()?.unsealed != 0 {
        std::thread::yield_now();
    }

    // When full, and not for every commit.
    let before = app.info()?;
    for _ in 0..500 {
        write(&thread, domain, page, 0)?;
    }
    app.flush()?;
    let after = app.info()?;
    ensure!(after.commits - before.commits == 500, "every commit counts");
    ensure!(
        after.sealed_pages - before.sealed_pages == 500,
        "every page is sealed"
    );
    let messages = after.seal_messages - before.seal_messages;
    ensure!(
        messages <= 250,
        "commits share messages: {messages} for 500 commits"
    );
    Ok(())
}
