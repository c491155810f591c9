//! The measurements, in the guest: the same work in a request and without, and errors.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vmsrs::{App, Domain};

use crate::sample::{Sample, What};

const PAGE: usize = 4096;
/// Pages of the block that requests write to.
const PAGES: usize = 256;
/// Pages that a request writes.
const WRITTEN: [usize; 4] = [1, 4, 16, 64];
/// Pages that a request has written when it fails.
const WRITTEN_BEFORE_AN_ERROR: [usize; 5] = [1, 4, 16, 64, 256];

/// Measures everything and hands each result to `tell`.
pub(crate) fn measure(rounds: u32, tell: &mut dyn FnMut(&Sample)) -> Result<()> {
    // SAFETY: no request here lends its locals to other threads.
    let app = unsafe { App::open("bench") }?;
    let user = app.domain("user")?;
    let block = user.run(|_| user.allocate(PAGES * PAGE, PAGE));
    let block = block.map_err(|error| anyhow::anyhow!("take a block: {error:?}"))?;
    let block = block.as_ptr();
    // The first writes grow the domain's memory: that is another cost.
    request(user, || write(block, PAGES))?;

    let mut plain = vec![0u8; (PAGES + 1) * PAGE];
    let offset = plain.as_ptr().align_offset(PAGE);
    let plain = plain.as_mut_ptr().wrapping_add(offset);
    write(plain, PAGES);

    let mut both = |pages: usize, rounds: u32, work: fn(*mut u8, usize)| -> Result<()> {
        for protected in [false, true] {
            let once = || match protected {
                true => request(user, || work(block, pages)),
                false => {
                    work(plain, pages);
                    Ok(())
                }
            };
            // Caches, stacks and frames are there after the first.
            once()?;
            let start = Instant::now();
            for _ in 0..rounds {
                once()?;
            }
            tell(&Sample {
                what: What::Request,
                pages,
                protected,
                rounds,
                nanoseconds: start.elapsed().as_nanos() as f64 / f64::from(rounds),
            });
        }
        Ok(())
    };
    both(0, rounds * 10, |block, _| {
        // SAFETY: the block is mapped; it is only read.
        black_box(unsafe { block.read_volatile() });
    })?;
    for pages in WRITTEN {
        both(pages, rounds, write)?;
    }
    for pages in WRITTEN_BEFORE_AN_ERROR {
        let rounds = rounds.div_ceil(10);
        let mut nanoseconds = 0.0;
        for _ in 0..rounds {
            nanoseconds += error_to_next_request(user, block, pages)? as f64;
        }
        tell(&Sample {
            what: What::Recovery,
            pages,
            protected: true,
            rounds,
            nanoseconds: nanoseconds / f64::from(rounds),
        });
    }
    Ok(())
}

/// Nanoseconds from an error in a request that has written to `pages` pages until the thread is in its next request.
fn error_to_next_request(user: &'static Domain, block: *mut u8, pages: usize) -> Result<u64> {
    let clock = Instant::now();
    // What a failed request left in its caller's locals is not defined: these are not in its frame.
    static STRUCK: AtomicU64 = AtomicU64::new(0);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let failed = user.run(|_| {
        write(block, pages);
        STRUCK.store(clock.elapsed().as_nanos() as u64, Relaxed);
        // SAFETY: it is not; its failure is what is measured.
        unsafe { black_box(std::ptr::without_provenance_mut::<u32>(16)).write_volatile(1) };
        Ok::<_, vmsrs::Error>(())
    });
    ensure!(failed.is_err(), "a write to address 16 failed no request");
    request(user, || {
        NEXT.store(clock.elapsed().as_nanos() as u64, Relaxed);
    })?;
    NEXT.load(Relaxed)
        .checked_sub(STRUCK.load(Relaxed))
        .context("the clock went back")
}

fn request(user: &'static Domain, work: impl FnOnce()) -> Result<()> {
    user.run(|_| {
        work();
        Ok::<_, vmsrs::Error>(())
    })
    .map_err(|error| anyhow::anyhow!("an ordinary request failed: {error:?}"))
}

/// Writes a byte of each of `pages` pages.
fn write(block: *mut u8, pages: usize) {
    for page in 0..pages {
        // SAFETY: the callers' blocks have `PAGES` pages, which they may write.
        unsafe { block.add(page * PAGE).write_volatile(page as u8) };
    }
}
