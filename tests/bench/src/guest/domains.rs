//! Many domains: opening one, and requests of one beside all others; and many pages of one domain.

use std::time::Instant;

use anyhow::Result;
use vmsrs::{App, Domain};

use super::counters::memory;
use super::meter::{Meter, Watch};
use super::pages::Block;
use super::{mark, request, seal};
use crate::sample::{Sample, What};

/// Pages of a large domain, by the pages of each of its blocks, for which it gets an extent each.
pub(crate) const FILLED: [usize; 2] = [60, 768];

/// Pages that a request commits of it.
const FILLED_AT_ONCE: usize = 256;

/// Domains after which their number is printed.
const PROGRESS: u32 = 50_000;

/// Opens as many domains as each of `counts` says, one after the other. Each gets a page. Then one gets many pages.
pub(super) fn measure(meter: &Meter, app: &'static App, counts: &[u32], rounds: u32) -> Result<()> {
    let mut domains: Vec<(&'static Domain, Block)> = Vec::new();
    let opening = Meter { counts: false };
    for &count in counts {
        let missing = (count as usize).saturating_sub(domains.len());
        if missing > 0 {
            domains.reserve(missing);
            opening.phase(missing as u32, |rounds| {
                open(app, &mut domains, rounds, count)
            })?;
        }
        // Always one domain, so that rows differ only in how many others there are.
        let Some((domain, block)) = domains.last() else {
            continue;
        };
        // What its first requests do is not measured.
        for _ in 0..16 {
            request(domain, || block.write_at(0, 1))?;
        }
        seal(domain)?;
        for pages in [0, 1] {
            let rounds = if pages == 0 {
                rounds * 200
            } else {
                rounds * 64
            };
            meter.phase(rounds, |rounds| {
                let watch = Watch::start();
                for _ in 0..rounds {
                    request(domain, || match pages {
                        0 => block.read(),
                        _ => block.write_at(0, pages),
                    })?;
                }
                let sample = Sample::new(What::Domains, true, rounds).lasted(watch);
                seal(domain)?;
                Ok(Sample {
                    pages,
                    count: Some(count),
                    ..sample
                })
            })?;
        }
    }
    fill(&opening, app)
}

/// Commits many pages of one domain.
fn fill(meter: &Meter, app: &'static App) -> Result<()> {
    let domain = app.domain("large")?;
    let [blocks, pages] = FILLED;
    let count = (blocks * pages) as u32;
    meter.phase(count, |rounds| {
        let before = memory()?;
        let watch = Watch::start();
        for _ in 0..blocks {
            let block = Block::large(domain, pages)?;
            for _ in 0..pages / FILLED_AT_ONCE {
                request(domain, || block.write_cold(FILLED_AT_ONCE))?;
            }
        }
        app.flush()?;
        let sample = Sample::new(What::Filling, true, rounds).lasted(watch);
        Ok(Sample {
            count: Some(count),
            memory: Some(memory()?.since(before)),
            ..sample
        })
    })
}

/// Opens `rounds` more domains and commits a page of each. The time is that of opening alone.
fn open(
    app: &'static App,
    domains: &mut Vec<(&'static Domain, Block)>,
    rounds: u32,
    count: u32,
) -> Result<Sample> {
    let before = memory()?;
    let mut opening = 0;
    for _ in 0..rounds {
        let start = Instant::now();
        mark::start();
        let domain = app.domain(format!("domain {}", domains.len()))?;
        mark::stop();
        opening += start.elapsed().as_nanos();
        domains.push((domain, Block::small(domain)?));
        if (domains.len() as u32).is_multiple_of(PROGRESS) {
            println!("domains: {} of {count}", domains.len());
        }
    }
    app.flush()?;
    Ok(Sample {
        count: Some(count),
        nanoseconds: opening as f64 / f64::from(rounds),
        memory: Some(memory()?.since(before)),
        ..Sample::new(What::Opening, true, rounds)
    })
}
