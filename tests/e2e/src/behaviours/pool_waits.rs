//! When the pool is empty because of commits that are not sealed yet, writers wait for the answer to a batch and go on.

use std::sync::Barrier;
use std::thread;

use anyhow::{Context, Result, ensure};
use vmsrs_protocol::PAGE_SIZE;

use crate::raw::{App, peek, poke};
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "writers_wait_for_a_full_pool_and_go_on",
    machine: Machine::SmallWindow,
    steps: &[("write", write)],
    host: |guest| guest.run_steps(&["write"]),
};

/// Threads, each with a domain of its own.
const THREADS: u32 = 4;
/// Pages that a request writes. All requests together have fewer drafts than the pool of 256 leaves to large ones; but
/// with what they have committed last, there are more than it has.
const PAGES: u32 = 48;
/// Commits of each thread, none of which waits for its seal.
const COMMITS: u8 = 60;

fn write(_: &str) -> Result<()> {
    let app = App::open("pool-waits")?;
    let info = app.info()?;
    ensure!(
        info.pool_frames < 2 * THREADS * PAGES && THREADS * PAGES < info.pool_frames / 8 * 7,
        "not the pool that this is made for: {info:?}"
    );
    let begin = Barrier::new(THREADS as usize);
    let (app, begin) = (&app, &begin);
    thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                scope.spawn(move || -> Result<()> {
                    let opened = app.domain(&format!("user {number}"), PAGES);
                    begin.wait();
                    let (domain, first) = opened?;
                    let thread = app.thread()?;
                    for value in 1..=COMMITS {
                        let tag = thread.begin(&[domain])?;
                        for page in 0..PAGES as usize {
                            let place = first.wrapping_add(page * PAGE_SIZE as usize + page);
                            // SAFETY: the page is the domain's, which the request holds. A write that
                            // is refused ends the process.
                            let found = unsafe {
                                let found = peek(place);
                                poke(place, value);
                                found
                            };
                            ensure!(found == value - 1, "page {page} has {found} before {value}");
                        }
                        thread.commit(tag, 0)?;
                        thread.end()?;
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().ok().context("a thread panicked")?)
    })?;
    app.drain()
}
