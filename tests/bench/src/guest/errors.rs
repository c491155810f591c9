//! Requests that fail: how soon their thread serves the next one, and what other users notice.

use std::arch::asm;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ptr::{NonNull, without_provenance_mut};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vmsrs::{App, Domain, Error, Request, RunError};
use vmsrs_report::distribution::Distribution;

use super::meter::Meter;
use super::pages::{Block, Pages};
use super::{mark, request, seal};
use crate::sample::{Sample, What};

/// Pages that a failing request has written.
const DROPPED: [usize; 4] = [1, 16, 64, 256];

/// What makes a request fail. It calls `strike` when everything is ready for the error.
type Strike<'a> = &'a dyn Fn();
type Fault = fn(&Request, &'static Domain, Strike<'_>) -> Result<(), Error>;

/// So many failures of a process have what it has open counted, which later ones do for a hundredth of the time only. They are
/// made before anything is measured.
const COUNTED: u32 = 64;

/// The error of all rows that compare pages.
const USUAL: (&str, Fault) = ("null write", null_write);

/// The others.
const FAULTS: [(&str, Fault); 12] = [
    ("foreign write", foreign_write),
    ("division by zero", division),
    ("illegal instruction", illegal),
    ("wild jump", wild_jump),
    ("stack overflow", stack_overflow),
    ("abort", abort),
    ("panic", panic),
    ("invariant", invariant),
    ("double free", double_free),
    ("foreign free", foreign_free),
    ("red zone", red_zone),
    ("use after free", use_after_free),
];

/// Users of the measurement of what others notice.
const USERS: usize = 16;
/// One in so many requests fails.
const FATAL: u32 = 10;

/// Measures all errors.
pub(super) fn measure(meter: &Meter, app: &'static App, pages: &Pages, rounds: u32) -> Result<()> {
    let other = other(app)?;
    for _ in 0..COUNTED {
        error_to_next_request(pages, other, USUAL.1, 1)?;
    }
    seal(pages.user)?;
    // The driver keeps memory ready for the reports of some failures, and has it again then.
    settle(app)?;
    for dropped in DROPPED {
        recovery(meter, pages, other, USUAL, dropped, rounds.div_ceil(2))?;
    }
    for fault in FAULTS {
        recovery(meter, pages, other, fault, 1, rounds.div_ceil(2))?;
    }
    others(meter, app, pages, rounds * 40)
}

/// Measures the row that a baseline is kept of.
pub(super) fn measure_main(
    meter: &Meter,
    app: &'static App,
    pages: &Pages,
    rounds: u32,
) -> Result<()> {
    recovery(meter, pages, other(app)?, USUAL, 1, rounds * 2)
}

/// A domain whose root is a block.
fn other(app: &'static App) -> Result<&'static Domain> {
    let other = app.domain("other")?;
    other.run(|request| {
        let block = NonNull::from(request.alloc(0u64)?);
        request.set_root(Some(block))
    })?;
    seal(other)?;
    Ok(other)
}

fn recovery(
    meter: &Meter,
    pages: &Pages,
    other: &'static Domain,
    (name, fault): (&str, Fault),
    dropped: usize,
    rounds: u32,
) -> Result<()> {
    meter.phase(rounds, |rounds| {
        let (mut nanoseconds, mut drafts) = (0, 0);
        for _ in 0..rounds {
            let (time, count) = error_to_next_request(pages, other, fault, dropped)
                .with_context(|| format!("error: {name}"))?;
            nanoseconds += time;
            drafts += count;
        }
        seal(pages.user)?;
        // The host takes the reports meanwhile: a profile shows what it does with them.
        mark::start();
        let settled = settle(pages.user.app());
        mark::stop();
        settled?;
        Ok(Sample {
            pages: dropped,
            dropped: Some(f64::from(drafts) / f64::from(rounds)),
            error: Some(name.to_owned()),
            nanoseconds: nanoseconds as f64 / f64::from(rounds),
            ..Sample::new(What::Recovery, true, rounds)
        })
    })
}

/// Waits until the host has taken all reports, so that what they cost it is counted in this measurement: the frames of
/// drafts that were dropped are not free before.
fn settle(app: &App) -> Result<()> {
    loop {
        let info = app.info()?;
        ensure!(info.broken == 0, "the device is broken");
        if info.pool_free + info.resident == info.pool_frames {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Nanoseconds from an error in a request that has written to `dropped` pages of a block until the thread is in its next request,
/// and the pages of all kinds that were dropped.
fn error_to_next_request(
    pages: &Pages,
    other: &'static Domain,
    fault: Fault,
    dropped: usize,
) -> Result<(u64, u32)> {
    let clock = Instant::now();
    // A failed request leaves its caller's locals undefined, so these are statics.
    static STRUCK: AtomicU64 = AtomicU64::new(0);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let first = pages.block.turn(dropped);
    let failed = pages.user.run(|request| {
        pages.block.write_at(first, dropped);
        fault(request, other, &|| {
            STRUCK.store(clock.elapsed().as_nanos() as u64, Relaxed);
            mark::start();
        })
    });
    let Err(RunError::Failed(failure)) = failed else {
        bail!("the error failed no request: {failed:?}");
    };
    request(pages.user, || {
        mark::stop();
        NEXT.store(clock.elapsed().as_nanos() as u64, Relaxed);
    })?;
    let time = NEXT
        .load(Relaxed)
        .checked_sub(STRUCK.load(Relaxed))
        .context("the clock went backwards")?;
    Ok((time, failure.drafts))
}

/// What users' requests take that write a page, without errors and while every tenth request is another user's and fails.
fn others(meter: &Meter, app: &'static App, pages: &Pages, requests: u32) -> Result<()> {
    let mut users: Vec<(&'static Domain, Block)> = Vec::new();
    for user in 0..USERS {
        let domain = app.domain(format!("other {user}"))?;
        users.push((domain, Block::small(domain)?));
    }
    for what in [What::Undisturbed, What::Disturbed] {
        meter.phase(requests, |requests| {
            let mut times = Distribution::default();
            let mut sum = 0;
            for number in 0..requests {
                if number % FATAL == FATAL - 1 {
                    serve_tenth(pages, what == What::Disturbed)?;
                    continue;
                }
                let (domain, block) = &users[number as usize % USERS];
                let start = Instant::now();
                request(domain, || block.write_at(0, 1))?;
                let time = start.elapsed().as_nanos() as u64;
                times.record(time);
                sum += time;
            }
            seal(pages.user)?;
            settle(app)?;
            Ok(Sample {
                pages: 1,
                nanoseconds: sum as f64 / times.count() as f64,
                p99: times.percentile(99).map(|time| time as f64),
                ..Sample::new(what, true, requests)
            })
        })?;
    }
    Ok(())
}

/// The tenth request, which fails or does not.
fn serve_tenth(pages: &Pages, fails: bool) -> Result<()> {
    let first = pages.block.turn(1);
    let outcome = pages.user.run(|request| {
        pages.block.write_at(first, 1);
        match fails {
            true => null_write(request, request.domain(), &|| ()),
            false => Ok(()),
        }
    });
    ensure!(outcome.is_err() == fails, "the tenth request: {outcome:?}");
    Ok(())
}

fn null_write(_: &Request, _: &'static Domain, strike: Strike<'_>) -> Result<(), Error> {
    strike();
    // SAFETY: this faults on purpose: recovery from it is what is measured.
    unsafe { black_box(without_provenance_mut::<u32>(16)).write_volatile(1) };
    Ok(())
}

fn foreign_write(_: &Request, other: &'static Domain, strike: Strike<'_>) -> Result<(), Error> {
    strike();
    // SAFETY: faults, which ends the request: it does not hold the other domain.
    unsafe { other.root_address().write_volatile(1) };
    Ok(())
}

fn division(_: &Request, _: &'static Domain, strike: Strike<'_>) -> Result<(), Error> {
    strike();
    // SAFETY: the division by zero ends the request.
    unsafe { asm!("div {zero:e}", zero = in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _) };
    Ok(())
}

fn illegal(_: &Request, _: &'static Domain, strike: Strike<'_>) -> Result<(), Error> {
    strike();
    // SAFETY: the undefined instruction ends the request.
    unsafe { asm!("ud2") };
    Ok(())
}

fn wild_jump(_: &Request, _: &'static Domain, strike: Strike<'_>) -> Result<(), Error> {
    strike();
    // SAFETY: faults at its first instruction, which ends the request.
    let function: extern "C" fn() =
        unsafe { std::mem::transmute(without_provenance_mut::<()>(0x30)) };
    function();
    Ok(())
}

fn stack_overflow(_: &Request, _: &'static Domain, strike: Strike<'_>) -> Result<(), Error> {
    /// Uses almost a page of the stack, and writes little of it.
    fn recurse(depth: u64) -> u64 {
        let mut frame = [MaybeUninit::<u8>::uninit(); 3900];
        black_box(frame[0].write(1));
        // Always true, but the compiler does not know.
        if black_box(true) {
            depth + recurse(depth + 1)
        } else {
            depth
        }
    }
    strike();
    black_box(recurse(0));
    Ok(())
}

fn abort(_: &Request, _: &'static Domain, strike: Strike<'_>) -> Result<(), Error> {
    strike();
    std::process::abort()
}

fn panic(_: &Request, _: &'static Domain, strike: Strike<'_>) -> Result<(), Error> {
    strike();
    panic!("a panic of the server's own code")
}

fn invariant(request: &Request, _: &'static Domain, strike: Strike<'_>) -> Result<(), Error> {
    strike();
    request.fail("a sum does not add up")
}

fn double_free(request: &Request, _: &'static Domain, strike: Strike<'_>) -> Result<(), Error> {
    let block = request.domain().allocate(40, 16)?;
    // SAFETY: the second call is the error that is measured.
    unsafe {
        request.domain().deallocate(block)?;
        strike();
        request.domain().deallocate(block)
    }
}

fn foreign_free(
    request: &Request,
    other: &'static Domain,
    strike: Strike<'_>,
) -> Result<(), Error> {
    let Some(block) = NonNull::new(other.root_address()) else {
        return Ok(());
    };
    strike();
    // SAFETY: freeing a block of another domain is the error that is measured.
    unsafe { request.domain().deallocate(block) }
}

fn red_zone(request: &Request, _: &'static Domain, strike: Strike<'_>) -> Result<(), Error> {
    let block = request.domain().allocate(40, 16)?.as_ptr();
    // SAFETY: the byte after the block is part of its red zone.
    unsafe { block.wrapping_add(40).write_volatile(0x41) };
    // The audit at the request's end finds it.
    strike();
    Ok(())
}

fn use_after_free(request: &Request, _: &'static Domain, strike: Strike<'_>) -> Result<(), Error> {
    let block = request.domain().allocate(40, 16)?;
    // SAFETY: the write to the freed block, which stays mapped, is the error that is measured.
    unsafe {
        request.domain().deallocate(block)?;
        block.as_ptr().wrapping_add(8).write_volatile(1);
    }
    // The audit at the request's end finds it.
    strike();
    Ok(())
}
