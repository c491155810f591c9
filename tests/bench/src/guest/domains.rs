//! Many domains: opening one, and requests of one beside all others.

use std::time::Instant;

use anyhow::Result;
use vmsrs::{App, Domain};

use super::counters::memory;
use super::meter::{Meter, Watch};
use super::pages::Block;
use super::{mark, request, seal};
use crate::sample::{Memory, Sample, What};

/// Opens as many domains as each of `counts` says, one after the other. Each gets a page.
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
    Ok(())
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
    }
    app.flush()?;
    let after = memory()?;
    Ok(Sample {
        count: Some(count),
        nanoseconds: opening as f64 / f64::from(rounds),
        memory: Some(Memory {
            driver: after.driver - before.driver,
            process: after.process - before.process,
            page_tables: after.page_tables - before.page_tables,
        }),
        ..Sample::new(What::Opening, true, rounds)
    })
}
