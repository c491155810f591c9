//! A request that writes to more than half of the pool fails alone, and several large requests leave frames for small
//! ones.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use vmsrs::{App, Domain, Error, Kind, RunError};

use crate::{Behaviour, Machine};

/// Half of the small machine's pool: the limit for one request.
const LIMIT: usize = 128;

/// What the large request's domain is filled with.
const SECRET: u8 = 0xa7;

/// New pages that one request looks at.
const NEW_PAGES: usize = 100;

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "request_over_half_the_pool_fails_alone",
    machine: Machine::SmallWindow,
    steps: &[("one", one), ("two", two), ("two in steps", two_in_steps)],
    host: |guest| guest.run_steps(&["one", "two", "two in steps"]),
};

static LARGE_AT_LIMIT: AtomicBool = AtomicBool::new(false);
static SMALL_DONE: AtomicBool = AtomicBool::new(false);

/// A request that goes over its limit fails, while another one is served.
fn one(_: &str) -> Result<()> {
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("pool-limit") }?;
    let large = app.domain("large")?;
    let small = app.domain("small")?;
    // The blocks are allocated in requests of their own.
    let block = large.run(|request| request.domain().allocate((LIMIT + 32) * 4096, 4096))?;
    let first = block.as_ptr().expose_provenance();
    let write = move |page: usize| {
        // SAFETY: the block has that many pages, and callers hold its domain.
        unsafe {
            std::ptr::with_exposed_provenance_mut::<u8>(first + page * 4096).write_volatile(1)
        };
    };
    small.run(|request| request.alloc(0u8).map(drop))?;
    // Content to copy into each draft.
    for pages in (0..LIMIT + 32).collect::<Vec<_>>().chunks(LIMIT / 4) {
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

    let other = thread::spawn(move || -> Result<()> {
        while !LARGE_AT_LIMIT.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        let result = (0..200).try_for_each(|_| small.run(|request| request.alloc(0u8).map(drop)));
        SMALL_DONE.store(true, Ordering::SeqCst);
        Ok(result?)
    });
    let result = large.run(|_| {
        // A few less than the limit, since the domain's first page may be a draft as well.
        (0..LIMIT - 8).for_each(write);
        LARGE_AT_LIMIT.store(true, Ordering::SeqCst);
        while !SMALL_DONE.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        (LIMIT - 8..LIMIT + 32).for_each(write);
        Ok::<_, Error>(())
    });
    other.join().ok().context("the other thread panicked")??;
    let Err(RunError::Failed(failure)) = result else {
        anyhow::bail!("a request has written to more than half of the pool: {result:?}")
    };
    ensure!(failure.kind == Kind::NoFrames, "{failure}");
    ensure!(
        failure.drafts as usize <= LIMIT,
        "{} drafts",
        failure.drafts
    );
    app.flush()?;
    new_pages_are_zero(app.domain("curious")?)
}

/// New pages are zero, whatever was copied to the frame of a refused draft.
fn new_pages_are_zero(curious: &'static Domain) -> Result<()> {
    for _ in 0..2 {
        let nonzero = curious.run(|request| {
            let block = request.domain().allocate(NEW_PAGES * 4096, 4096)?.as_ptr();
            // Both ends hold bytes of the heap.
            let nonzero = (1..NEW_PAGES - 1).filter(|page| {
                let page = block.wrapping_add(page * 4096);
                // SAFETY: a page of the block; the write makes a draft of it.
                let bytes = unsafe {
                    page.write_volatile(0);
                    std::slice::from_raw_parts(page, 4096)
                };
                bytes.iter().any(|&byte| byte != 0)
            });
            Ok::<_, Error>(nonzero.count())
        })?;
        ensure!(
            nonzero == 0,
            "{nonzero} new pages have another domain's bytes"
        );
    }
    Ok(())
}

/// Two requests that may each use half of the pool cannot use all of it: small ones are still served.
fn two(_: &str) -> Result<()> {
    serves_small_requests_beside(PAGES, 0)
}

/// The same when the second one takes the rest page by page, each in a domain that it has not written to yet.
fn two_in_steps(_: &str) -> Result<()> {
    serves_small_requests_beside(PAGES - 32, 31)
}

/// As many pages as a request may write to, less a few that the heap needs.
const PAGES: usize = LIMIT - 4;

/// Runs small requests beside two large ones. The first has [`PAGES`] drafts; the second makes `pages` drafts and one
/// in each of `further` domains, which exceeds what is left.
fn serves_small_requests_beside(pages: usize, further: usize) -> Result<()> {
    // Pages of a small request: more than would be left if the two could have all they want.
    const FEW: usize = 12;
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("pool-limit") }?;
    let block = |key: &str, pages: usize| -> Result<(&'static Domain, usize)> {
        let domain = app.domain(key)?;
        let first = domain.run(|request| request.domain().allocate(pages * 4096, 4096))?;
        Ok((domain, first.as_ptr().expose_provenance()))
    };
    let write = |first: usize, pages: usize| {
        for page in 0..pages {
            let address = std::ptr::with_exposed_provenance_mut::<u8>(first + page * 4096);
            // SAFETY: the block has that many pages, and callers hold its domain.
            unsafe { address.write_volatile(1) };
        }
    };
    let (one, other, few) = (
        block("one half", PAGES)?,
        block("other half", PAGES)?,
        block("few", FEW)?,
    );
    let further: Vec<_> = (0..further)
        .map(|number| block(&format!("further {number}"), 1))
        .collect::<Result<_>>()?;
    app.flush()?;
    let (second_ended, small_ended) = (AtomicBool::new(false), AtomicBool::new(false));
    let (write_all, has_written) = std::sync::mpsc::channel();
    let (end, may_end) = std::sync::mpsc::channel::<()>();
    thread::scope(|scope| -> Result<()> {
        let first = scope.spawn(move || {
            one.0.run(|_| {
                write(one.1, PAGES);
                let _ = write_all.send(());
                // Until the others have ended in any way.
                let _ = may_end.recv();
                Ok::<_, Error>(())
            })
        });
        has_written.recv().context("the first request failed")?;
        let (second_ended, small_ended, further) = (&second_ended, &small_ended, &further);
        let second = scope.spawn(move || {
            let result = other.0.run(|request| {
                write(other.1, pages);
                let mut entered = Vec::new();
                for (domain, page) in further {
                    entered.push(request.enter(domain)?);
                    write(*page, 1);
                }
                // If it gets all it wants, it keeps that.
                while !further.is_empty() && !small_ended.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                Ok::<_, Error>(())
            });
            second_ended.store(true, Ordering::SeqCst);
            result
        });
        let mut small = Ok(());
        while small.is_ok() && !second_ended.load(Ordering::SeqCst) {
            small = few.0.run(|_| {
                write(few.1, FEW);
                Ok::<_, Error>(())
            });
        }
        small_ended.store(true, Ordering::SeqCst);
        let second = second.join().ok().context("the second thread panicked")?;
        drop(end);
        let first = first.join().ok().context("the first thread panicked")?;
        small.context("a small request beside two large ones")?;
        first.context("the first large request")?;
        let Err(RunError::Failed(failure)) = second else {
            anyhow::bail!("two requests have taken the whole pool: {second:?}")
        };
        ensure!(failure.kind == Kind::NoFrames, "{failure}");
        Ok(())
    })
}
