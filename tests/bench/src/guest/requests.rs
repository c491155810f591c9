//! The same work inside of a request and outside.

use std::arch::x86_64::__cpuid;
use std::hint::black_box;

use anyhow::Result;
use vmsrs_protocol::shared::RESIDENT_MAX;

use super::meter::{Call, Meter, Run, Stamps, Watch};
use super::pages::{Block, MOST, Pages};
use super::{request, seal};
use crate::sample::{Parts, Sample, What};

/// Cold pages that a request writes.
const COLD: [usize; 5] = [1, 4, 16, 64, MOST];
/// Pages that each request writes. More than [`RESIDENT_MAX`] of them are drafts made ahead.
const RESIDENT: [usize; 5] = [1, 4, RESIDENT_MAX, 64, MOST];

/// Measures requests that read and that write.
pub(super) fn measure(meter: &Meter, pages: &Pages, rounds: u32) -> Result<()> {
    meter.phase(rounds * 100, |rounds| {
        let watch = Watch::start();
        for _ in 0..rounds {
            #[allow(
                unused_unsafe,
                reason = "safe in newer compilers than the oldest supported"
            )]
            // SAFETY: every x86-64 CPU has the instruction.
            black_box(unsafe { __cpuid(0) });
        }
        Ok(Sample::new(What::Exit, false, rounds).lasted(watch))
    })?;
    let both = |what, count, work: fn(&Block, usize)| {
        alone(meter, pages, what, count, rounds, work)?;
        in_requests(meter, pages, what, count, rounds, work)
    };
    call(meter, pages, rounds)?;
    both(What::Request, 0, |block, _| block.read())?;
    for count in COLD {
        both(What::Request, count, Block::write_cold)?;
    }
    for count in RESIDENT {
        both(What::Resident, count, Block::write_resident)?;
    }
    Ok(())
}

/// Measures the rows that a baseline is kept of. With several cold pages the cost depends on when the batches are sent, so
/// that a change elsewhere in the code moves it.
pub(super) fn measure_main(meter: &Meter, pages: &Pages, rounds: u32) -> Result<()> {
    let read = |block: &Block, _| block.read();
    in_requests(meter, pages, What::Request, 0, rounds, read)?;
    in_requests(meter, pages, What::Request, 1, rounds, Block::write_cold)?;
    for count in RESIDENT.into_iter().filter(|&count| count <= RESIDENT_MAX) {
        let write = Block::write_resident;
        in_requests(meter, pages, What::Resident, count, rounds, write)?;
    }
    Ok(())
}

/// Small requests have more rounds, so that each measurement takes about as long as `rounds` requests that write to 64
/// pages.
fn repeated(rounds: u32, count: usize) -> u32 {
    match count {
        0 => rounds * 200,
        _ => (rounds * 64 / count as u32).max(2),
    }
}

fn alone(
    meter: &Meter,
    pages: &Pages,
    what: What,
    count: usize,
    rounds: u32,
    work: impl Fn(&Block, usize),
) -> Result<()> {
    meter.phase(repeated(rounds, count), |rounds| {
        work(&pages.plain, count);
        let watch = Watch::start();
        for _ in 0..rounds {
            work(&pages.plain, count);
        }
        let sample = Sample::new(what, false, rounds).lasted(watch);
        Ok(Sample {
            pages: count,
            ..sample
        })
    })
}

/// The time of a sample's rounds, and their parts.
fn timed(
    sample: Sample,
    run: &impl Run,
    block: &Block,
    count: usize,
    work: &impl Fn(&Block, usize),
) -> Result<(Sample, Parts)> {
    let mut stamps = Stamps::default();
    let watch = Watch::start();
    for _ in 0..sample.rounds {
        stamps.run(run, || work(block, count))?;
    }
    let sample = sample.lasted(watch);
    let parts = stamps.parts(sample.nanoseconds);
    Ok((sample, parts))
}

/// What is in the time of a request that reads, and is not the request's: the loop, the stamps, the function.
fn call(meter: &Meter, pages: &Pages, rounds: u32) -> Result<()> {
    meter.phase(repeated(rounds, 0), |rounds| {
        let sample = Sample::new(What::Call, false, rounds);
        let read = |block: &Block, _| block.read();
        Ok(timed(sample, &Call, &pages.block, 0, &read)?.0)
    })
}

fn in_requests(
    meter: &Meter,
    pages: &Pages,
    what: What,
    count: usize,
    rounds: u32,
    work: impl Fn(&Block, usize),
) -> Result<()> {
    // The first requests allocate stacks, warm the caches, and teach the driver what is written again and again.
    for _ in 0..16 {
        request(pages.user, || work(&pages.block, count))?;
    }
    seal(pages.user)?;
    meter.phase(repeated(rounds, count), |rounds| {
        let (sample, parts) = timed(
            Sample::new(what, true, rounds),
            &pages.user,
            &pages.block,
            count,
            &work,
        )?;
        // Sealing is part of the host's work.
        seal(pages.user)?;
        Ok(Sample {
            pages: count,
            parts: Some(parts),
            ..sample
        })
    })
}
