//! Many requests in flight: suspended ones, beside the one that is measured.

use anyhow::{Result, anyhow, ensure};
use vmsrs::{App, Domain, Options, Step, Task};

use super::meter::{Meter, Watch};
use super::pages::{Block, Pages};
use super::{request, seal};
use crate::sample::{Sample, What};

/// Requests in flight.
const IN_FLIGHT: [u32; 4] = [1, 16, 128, 1024];

/// A suspended request that has written a page.
struct Waiting {
    task: Task,
    block: Block,
}

/// Measures a request that writes a page while others are suspended, and the next step of those.
pub(super) fn measure(meter: &Meter, app: &'static App, pages: &Pages, rounds: u32) -> Result<()> {
    let mut waiting: Vec<Waiting> = Vec::new();
    for count in IN_FLIGHT {
        // The measured one is in flight too.
        while waiting.len() + 1 < count as usize {
            let domain = app.domain(format!("waiting {}", waiting.len()))?;
            waiting.push(Waiting::begin(domain)?);
        }
        meter.phase(rounds * 64, |rounds| {
            let watch = Watch::start();
            for _ in 0..rounds {
                request(pages.user, || pages.block.write_cold(1))?;
            }
            let sample = Sample::new(What::InFlight, true, rounds).lasted(watch);
            seal(pages.user)?;
            Ok(Sample {
                pages: 1,
                count: Some(count),
                ..sample
            })
        })?;
        if waiting.is_empty() {
            continue;
        }
        let steps = (rounds * 64 / count).max(1) * count;
        meter.phase(steps, |steps| {
            let watch = Watch::start();
            for step in 0..steps as usize {
                let number = step % waiting.len();
                waiting[number].step()?;
            }
            let sample = Sample::new(What::Step, true, steps).lasted(watch);
            Ok(Sample {
                count: Some(count),
                ..sample
            })
        })?;
    }
    for one in waiting {
        one.end()?;
    }
    seal(pages.user)
}

impl Waiting {
    fn begin(domain: &'static Domain) -> Result<Self> {
        let block = Block::small(domain)?;
        let mut one = Self {
            task: Task::new(domain, Options::default())?,
            block,
        };
        one.step()?;
        Ok(one)
    }

    /// Writes the page and suspends the request again.
    fn step(&mut self) -> Result<()> {
        let block = &self.block;
        let step = self.task.step(|_| {
            block.write_at(0, 1);
            Step::<()>::Suspend
        });
        let step = step.map_err(|error| anyhow!("a suspended request's step: {error:?}"))?;
        ensure!(step == Step::Suspend, "a request that was not suspended");
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        self.task
            .step(|_| Step::Done(()))
            .map_err(|error| anyhow!("the end of a suspended request: {error:?}"))?;
        Ok(())
    }
}
