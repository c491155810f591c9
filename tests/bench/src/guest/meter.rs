//! Measures stretches of work.

use std::arch::x86_64::_rdtsc;
use std::io::{Write, stdin, stdout};
use std::time::Instant;

use anyhow::{Result, ensure};
use vmsrs::Domain;

use super::counters::Counting;
use super::{mark, request};
use crate::host::READY;
use crate::sample::{Parts, Sample};

/// One in so many rounds is made before, to warm up and to count flushes.
const COUNTED: u32 = 5;
/// But at least so many, if there are as many.
const COUNTED_LEAST: u32 = 16;

/// Makes measurements, which the host brackets with its counters.
pub(super) struct Meter {
    /// Whether each measurement is made twice, the first time to count what the guest's kernel does.
    pub(super) counts: bool,
}

impl Meter {
    /// Whether a profile is made.
    pub(super) fn profiles(&self) -> bool {
        !self.counts
    }

    /// Makes one measurement of so many rounds.
    pub(super) fn phase(
        &self,
        rounds: u32,
        mut measure: impl FnMut(u32) -> Result<Sample>,
    ) -> Result<()> {
        let kernel = match self.counts {
            true => {
                let counting = Counting::start()?;
                let before = counting.now()?;
                let most = rounds.div_ceil(COUNTED).max(rounds.min(COUNTED_LEAST));
                let counted = measure(most)?.rounds;
                let after = counting.now()?;
                Some(counting.between(before, after).each(counted))
            }
            false => None,
        };
        println!("{READY}");
        stdout().flush()?;
        let read = stdin().read_line(&mut String::new())?;
        ensure!(read > 0, "the host does not answer on the console");
        mark::next_phase();
        let sample = measure(rounds)?;
        let sample = Sample { kernel, ..sample };
        println!("{}", sample.line()?);
        Ok(())
    }
}

/// Measures a stretch of work: its time, and for the profiler its instructions.
pub(super) struct Watch(Instant);

impl Watch {
    pub(super) fn start() -> Self {
        let start = Instant::now();
        mark::start();
        Self(start)
    }

    /// Nanoseconds since the start.
    pub(super) fn stop(self) -> u128 {
        mark::stop();
        self.0.elapsed().as_nanos()
    }
}

impl Sample {
    /// A sample of a stretch that ends now.
    pub(super) fn lasted(self, watch: Watch) -> Self {
        Self {
            nanoseconds: watch.stop() as f64 / f64::from(self.rounds),
            ..self
        }
    }
}

/// Where in requests the time is spent, by the CPU's time stamp counter.
#[derive(Default)]
pub(super) struct Stamps {
    start: u64,
    body: u64,
    end: u64,
}

/// What runs a function.
pub(super) trait Run {
    /// Runs it.
    fn run(&self, work: impl FnOnce()) -> Result<()>;
}

/// A request of a user.
impl Run for &'static Domain {
    fn run(&self, work: impl FnOnce()) -> Result<()> {
        request(self, work)
    }
}

/// A call.
pub(super) struct Call;

impl Run for Call {
    #[inline(never)]
    fn run(&self, work: impl FnOnce()) -> Result<()> {
        work();
        Ok(())
    }
}

impl Stamps {
    pub(super) fn run(&mut self, run: &impl Run, work: impl FnOnce()) -> Result<()> {
        let called = now();
        let (mut entered, mut done) = (0, 0);
        run.run(|| {
            entered = now();
            work();
            done = now();
        })?;
        self.start += entered - called;
        self.body += done - entered;
        self.end += now() - done;
        Ok(())
    }

    /// The parts of the requests' mean time.
    pub(super) fn parts(&self, nanoseconds: f64) -> Parts {
        let all = (self.start + self.body + self.end) as f64;
        let share = |part: u64| nanoseconds * part as f64 / all;
        Parts {
            start: share(self.start),
            body: share(self.body),
            end: share(self.end),
        }
    }
}

fn now() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and Linux allows it in user space.
    unsafe { _rdtsc() }
}
