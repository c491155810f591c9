//! A request that writes more than its share of the pool fails alone, and those that take their share leave
//! some to others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use vmsrs::{App, Domain, Error, Kind, RunError};

use crate::host::Guest;
use crate::{Behaviour, Machine};

/// Half of the small machine's pool.
const SHARE: usize = 128;

/// What the greedy request's domain is full of.
const SECRET: u8 = 0xa7;

/// Fresh pages that are looked at, in one request.
const FRESH: usize = 100;

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "request_over_half_the_pool_fails_alone",
    machine: Machine::SmallWindow,
    steps: &[
        ("greedy", greedy),
        ("together", together),
        ("further", further),
    ],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run("greedy", "")?;
    guest.run("together", "")?;
    guest.run("further", "").map(drop)
}

static GREEDY_AT_ITS_LIMIT: AtomicBool = AtomicBool::new(false);
static INNOCENT_DONE: AtomicBool = AtomicBool::new(false);

fn greedy(_: &str) -> Result<()> {
    // SAFETY: no request here lends its locals to others.
    let app = unsafe { App::open("greedy") }?;
    let large = app.domain("large")?;
    let small = app.domain("small")?;
    // Room first, in requests of their own.
    let block = large.run(|request| request.domain().allocate((SHARE + 32) * 4096, 4096))?;
    let first = block.as_ptr().expose_provenance();
    let write = move |page: usize| {
        // SAFETY: the block has that many pages, and the callers hold its domain.
        unsafe {
            std::ptr::with_exposed_provenance_mut::<u8>(first + page * 4096).write_volatile(1)
        };
    };
    small.run(|request| request.alloc(0u8).map(drop))?;
    // Something to copy into each draft.
    for pages in (0..SHARE + 32).collect::<Vec<_>>().chunks(SHARE / 4) {
        large.run(|_| {
            for page in pages {
                // SAFETY: as in `write`.
                unsafe {
                    std::ptr::with_exposed_provenance_mut::<u8>(first + page * 4096)
                        .write_bytes(SECRET, 4096);
                }
            }
            Ok::<_, Error>(())
        })?;
    }

    let innocent = thread::spawn(move || -> Result<()> {
        while !GREEDY_AT_ITS_LIMIT.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        let result = (0..200).try_for_each(|_| small.run(|request| request.alloc(0u8).map(drop)));
        INNOCENT_DONE.store(true, Ordering::SeqCst);
        Ok(result?)
    });
    let result = large.run(|_| {
        // A few less than its share: the domain's first page may be a draft as well.
        (0..SHARE - 8).for_each(write);
        GREEDY_AT_ITS_LIMIT.store(true, Ordering::SeqCst);
        while !INNOCENT_DONE.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        (SHARE - 8..SHARE + 32).for_each(write);
        Ok::<_, Error>(())
    });
    innocent
        .join()
        .ok()
        .context("the innocent thread panicked")??;
    let Err(RunError::Failed(failure)) = result else {
        anyhow::bail!("more than half of the pool was written: {result:?}")
    };
    ensure!(failure.kind == Kind::NoFrames, "{failure}");
    ensure!(
        failure.drafts as usize <= SHARE,
        "{} drafts",
        failure.drafts
    );
    app.flush()?;
    nothing_shows(app.domain("curious")?)
}

/// Pages that were never written are zero, whatever a refused draft had copied before.
fn nothing_shows(curious: &'static Domain) -> Result<()> {
    for _ in 0..2 {
        let shown = curious.run(|request| {
            let block = request.domain().allocate(FRESH * 4096, 4096)?.as_ptr();
            // The heap's own bytes lie at both ends.
            let shown = (1..FRESH - 1).filter(|page| {
                let page = block.wrapping_add(page * 4096);
                // SAFETY: a page inside of the block, whose first write makes a draft of it.
                let bytes = unsafe {
                    page.write_volatile(0);
                    std::slice::from_raw_parts(page, 4096)
                };
                bytes.iter().any(|&byte| byte != 0)
            });
            Ok::<_, Error>(shown.count())
        })?;
        ensure!(
            shown == 0,
            "{shown} fresh pages have another domain's bytes"
        );
    }
    Ok(())
}

/// Two requests that may have half of the pool each do not take it all: of what is left, small ones live.
fn together(_: &str) -> Result<()> {
    beside_small_ones(PAGES, 0)
}

/// The same if the second one takes what is left page by page, each in a domain that it has not written to yet.
fn further(_: &str) -> Result<()> {
    beside_small_ones(PAGES - 32, 31)
}

/// As much as a request may have, but for a few pages that the heap needs.
const PAGES: usize = SHARE - 4;

/// Small requests beside two, one of which has [`PAGES`], and the other one has `pages` and wants one more in
/// each of `further` domains, or more than there are if that is none.
fn beside_small_ones(pages: usize, further: usize) -> Result<()> {
    // A small request, and still more than what is left if the two had all.
    const FEW: usize = 12;
    // SAFETY: no request here lends its locals to others.
    let app = unsafe { App::open("greedy") }?;
    let room = |key: &str, pages: usize| -> Result<(&'static Domain, usize)> {
        let domain = app.domain(key)?;
        let block = domain.run(|request| request.domain().allocate(pages * 4096, 4096))?;
        Ok((domain, block.as_ptr().expose_provenance()))
    };
    let write = |first: usize, pages: usize| {
        for page in 0..pages {
            let place = std::ptr::with_exposed_provenance_mut::<u8>(first + page * 4096);
            // SAFETY: the block has that many pages, and the callers hold its domain.
            unsafe { place.write_volatile(1) };
        }
    };
    let (one, other, few) = (
        room("one half", PAGES)?,
        room("other half", PAGES)?,
        room("few", FEW)?,
    );
    let further: Vec<_> = (0..further)
        .map(|number| room(&format!("further {number}"), 1))
        .collect::<Result<_>>()?;
    app.flush()?;
    let (over, small_ended) = (AtomicBool::new(false), AtomicBool::new(false));
    let (has_written, one_is_full) = std::sync::mpsc::channel();
    let (one_waits, others_end) = std::sync::mpsc::channel::<()>();
    thread::scope(|scope| -> Result<()> {
        let first = scope.spawn(move || {
            one.0.run(|_| {
                write(one.1, PAGES);
                let _ = has_written.send(());
                // Until the others are done, well or not.
                let _ = others_end.recv();
                Ok::<_, Error>(())
            })
        });
        one_is_full.recv().context("the first request failed")?;
        let (over, small_ended, further) = (&over, &small_ended, &further);
        let second = scope.spawn(move || {
            let result = other.0.run(|request| {
                write(other.1, pages);
                let mut entered = Vec::new();
                for (domain, page) in further {
                    entered.push(request.enter(domain)?);
                    write(*page, 1);
                }
                // If it has what it wanted, it keeps that.
                while !further.is_empty() && !small_ended.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                Ok::<_, Error>(())
            });
            over.store(true, Ordering::SeqCst);
            result
        });
        let mut small = Ok(());
        while small.is_ok() && !over.load(Ordering::SeqCst) {
            small = few.0.run(|_| {
                write(few.1, FEW);
                Ok::<_, Error>(())
            });
        }
        small_ended.store(true, Ordering::SeqCst);
        let second = second.join().ok().context("the second thread panicked")?;
        drop(one_waits);
        let first = first.join().ok().context("the first thread panicked")?;
        small.context("a small request beside two greedy ones")?;
        first.context("the request that had its half first")?;
        let Err(RunError::Failed(failure)) = second else {
            anyhow::bail!("two requests took all of the pool: {second:?}")
        };
        ensure!(failure.kind == Kind::NoFrames, "{failure}");
        Ok(())
    })
}
