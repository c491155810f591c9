//! Threads in step, for counts that several vCPUs make: all write their pages, all commit, the host seals.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;

use anyhow::{Result, anyhow, ensure};
use vmsrs::{App, Domain};

use super::counters::{Counting, Counts};
use super::meter::{Meter, Watch};
use super::pages::Block;
use crate::sample::{Sample, Steps, What};

/// Threads, each with its own domain.
const THREADS: [u32; 3] = [1, 4, 16];
/// Pages that each of them writes in a request.
const WRITTEN: usize = 4;

/// Which step the threads may take, and how many have taken theirs. Who waits gives its CPU away but does not sleep: waking
/// a thread would be an interrupt.
#[derive(Default)]
struct Gate {
    step: AtomicU32,
    arrived: AtomicU32,
    /// A request has failed: its thread takes no more steps.
    failed: AtomicBool,
}

/// A thread's domain and pages.
struct Worker {
    domain: &'static Domain,
    block: Block,
}

/// Measures all numbers of threads.
pub(super) fn measure(app: &'static App, rounds: u32) -> Result<()> {
    let mut workers = Vec::new();
    for count in THREADS {
        while workers.len() < count as usize {
            let domain = app.domain(format!("thread {}", workers.len()))?;
            workers.push(Worker {
                domain,
                block: Block::large(domain, WRITTEN)?,
            });
        }
        // Each makes many threads write and commit, and the CPUs are emulated: about as many requests in all.
        let rounds = (4 * rounds / count).clamp(1, rounds);
        // Counts come with each round, not from a pass of their own.
        let meter = Meter { counts: false };
        meter.phase(rounds, |rounds| in_step(app, &mut workers, rounds))?;
    }
    Ok(())
}

fn in_step(app: &'static App, workers: &mut [Worker], rounds: u32) -> Result<Sample> {
    let gate = Gate::default();
    let count = workers.len() as u32;
    thread::scope(|scope| {
        let threads: Vec<_> = workers
            .iter_mut()
            .map(|worker| {
                let gate = &gate;
                scope.spawn(move || worker.serve(gate, rounds + 1))
            })
            .collect();
        let counted = count_steps(app, &gate, count, rounds);
        if counted.is_err() {
            // Lets all threads end.
            gate.step.store(u32::MAX, SeqCst);
        }
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        counted
    })
}

/// Lets the threads take their steps and counts in between.
fn count_steps(app: &'static App, gate: &Gate, count: u32, rounds: u32) -> Result<Sample> {
    let mut sums = [Counts::default(); 3];
    let counting = Counting::start()?;
    // The first round is not counted.
    gate.take_step(count)?;
    gate.take_step(count)?;
    app.flush()?;
    let watch = Watch::start();
    for _ in 0..rounds {
        let before = counting.now()?;
        gate.take_step(count)?;
        let written = counting.now()?;
        gate.take_step(count)?;
        let committed = counting.now()?;
        app.flush()?;
        let sealed = counting.now()?;
        let steps = [(before, written), (written, committed), (committed, sealed)];
        for (sum, (from, to)) in sums.iter_mut().zip(steps) {
            *sum = sum.plus(counting.between(from, to));
        }
    }
    let sample = Sample::new(What::Threads, true, rounds).lasted(watch);
    let each = |sum: Counts, parts: u32| sum.each(rounds * parts);
    Ok(Sample {
        pages: WRITTEN,
        count: Some(count),
        steps: Some(Steps {
            fault: each(sums[0], count * WRITTEN as u32),
            commit: each(sums[1], count),
            seal: each(sums[2], 1),
        }),
        ..sample
    })
}

impl Worker {
    /// Serves a request each round: its pages are written in one step and committed in the next one.
    fn serve(&self, gate: &Gate, rounds: u32) -> Result<()> {
        for round in 0..rounds {
            let (write, commit) = (2 * round + 1, 2 * round + 2);
            gate.wait(write);
            self.domain
                .run(|_| {
                    self.block.write_at(0, WRITTEN);
                    gate.arrived.fetch_add(1, SeqCst);
                    gate.wait(commit);
                    Ok::<_, vmsrs::Error>(())
                })
                .map_err(|error| {
                    gate.failed.store(true, SeqCst);
                    anyhow!("a thread's request failed: {error:?}")
                })?;
            gate.arrived.fetch_add(1, SeqCst);
        }
        Ok(())
    }
}

impl Gate {
    /// Lets all `count` threads take their next step and waits until they have.
    fn take_step(&self, count: u32) -> Result<()> {
        self.arrived.store(0, SeqCst);
        self.step.fetch_add(1, SeqCst);
        while self.arrived.load(SeqCst) < count {
            ensure!(!self.failed.load(SeqCst), "a thread's request failed");
            thread::yield_now();
        }
        Ok(())
    }

    /// Waits until a step may be taken.
    fn wait(&self, step: u32) {
        while self.step.load(SeqCst) < step {
            thread::yield_now();
        }
    }
}
