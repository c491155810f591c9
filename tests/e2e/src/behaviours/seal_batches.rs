//! A seal batch is sent when it is full, a short time after its first record, or on request.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vmsrs_protocol::ioctl::COMMIT_SEAL;

use crate::raw::App;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "seal_batch_is_sent_when_full_or_due_or_requested",
    machine: Machine::Usual,
    steps: &[("batches", batches)],
    host: |guest| guest.run_steps(&["batches"]),
};

/// Commits in a burst.
const COMMITS: u64 = 500;
/// The shortest time for which the driver collects a batch that is not full: 5 ms, less up to one jiffy.
const BATCH_DELAY: Duration = Duration::from_millis(4);

fn batches(_: &str) -> Result<()> {
    let app = App::open("seal-batches")?;
    let (domain, page) = app.domain("user", 4)?;
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
        std::thread::yield_now();
    }

    // When it is full, and not for each commit.
    let before = app.info()?;
    let start = Instant::now();
    for _ in 0..COMMITS {
        write(0)?;
    }
    app.flush()?;
    let elapsed = start.elapsed();
    let after = app.info()?;
    ensure!(
        after.commits - before.commits == COMMITS,
        "not every commit is counted"
    );
    ensure!(
        after.sealed_pages - before.sealed_pages == COMMITS,
        "not every page is sealed"
    );
    let messages = after.seal_messages - before.seal_messages;
    // On a slow machine most batches are sent by the timer before they are full.
    let by_timer = elapsed.as_micros() / BATCH_DELAY.as_micros();
    ensure!(
        u128::from(messages) <= u128::from(COMMITS / 2).max(by_timer),
        "{messages} messages for {COMMITS} commits within {elapsed:?}"
    );
    Ok(())
}
