//! Errors in requests, and models of what servers have.
//!
//! Each connection has data of its own, so it knows every answer. One in a few of its commands is hit by an error; all others
//! must be answered right, and what others have must stay.

mod kinds;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::rngs::SmallRng;
use vmsrs_campaign::arm::{Arm, Point};
use vmsrs_campaign::kind::{self, Kind};

pub(super) use kinds::{COPIES, LEFT_OUT, places};

use super::server::{Server, last_lines};
use super::tell;
use crate::plan::{Errors, Finding};
use crate::report::injector;

/// The injector, found by the loader.
pub(super) const INJECTOR_LIBRARY: &str = "libinject.so";
/// Commands without an error for each one with an error, at least.
const ORDINARY: u64 = 3;
/// Errors between two reports of what was found so far: each takes the emulated console some seconds.
const PROGRESS: u64 = 250;
/// Complaints that are kept.
const COMPLAINTS: usize = 24;

/// A connection with data of its own.
pub(super) trait Worker: Send + Sized {
    /// Connections, each with a thread of its own here.
    const CONNECTIONS: u64;
    /// Why each of [`LEFT_OUT`] is.
    const REASONS: [&'static str; LEFT_OUT.len()];
    /// Starts the build with bugs, which sends and receives by the calls that the injector sees.
    fn start() -> Result<Server>;
    /// Connects.
    fn new(number: u64, seed: u64) -> Result<Self>;
    /// A command without an error: its answer must be right.
    fn ordinary(&mut self) -> Result<()>;
    /// A command with an error.
    fn hit(&mut self, kind: &'static Kind) -> Result<()>;
    /// Connects again, and begins anew.
    fn again(&mut self) -> Result<()>;
    /// Checks all that it has.
    fn check_all(&mut self, what: &str) -> Result<()>;
    /// What it has found.
    fn found(&mut self) -> &mut Errors;
    /// Its source of random numbers.
    fn random(&mut self) -> &mut SmallRng;

    /// Notes what went wrong.
    fn complain(&mut self, mut words: String) {
        let complaints = &mut self.found().complaints;
        if complaints.len() < COMPLAINTS {
            words.truncate(400);
            complaints.push(words);
        }
    }

    /// Notes that others were harmed.
    fn harmed(&mut self, words: String) {
        self.found().others_harmed += 1;
        self.complain(words);
    }

    /// Draws an error of a kind; nothing if it cannot be made here.
    fn arm(&mut self, kind: &'static Kind) -> Option<Arm> {
        let (errors, points) = places(kind)?;
        let random = self.random();
        let point = points[random.random_range(0..points.len())];
        Some(Arm {
            point,
            count: match point {
                Point::Moment => random.random_range(1..20_000),
                Point::Copy | Point::Library => random.random_range(1..6),
                _ => 1,
            },
            error: errors[random.random_range(0..errors.len())],
            parameter: random.random(),
            deadline_ms: kind.deadline_ms,
            seal: false,
        })
    }
}

/// Adds what a connection has found since it was asked last.
fn add<W: Worker>(sum: &mut Errors, worker: &mut W) {
    let one = std::mem::take(worker.found());
    sum.injected += one.injected;
    sum.request_lost += one.request_lost;
    sum.no_effect += one.no_effect;
    sum.own_wrong += one.own_wrong;
    sum.unreported += one.unreported;
    sum.not_reached += one.not_reached;
    sum.others_harmed += one.others_harmed;
    sum.ordinary += one.ordinary;
    for (kind, time) in one.milliseconds {
        *sum.milliseconds.entry(kind).or_default() += time;
    }
    for (kind, count) in one.kinds {
        *sum.kinds.entry(kind).or_default() += count;
    }
    for complaint in one.complaints {
        if sum.complaints.len() < COMPLAINTS {
            sum.complaints.push(complaint);
        }
    }
}

/// Notes how the server ended, if it did.
fn note_end(server: &mut Server, found: &mut Errors) -> Result<bool> {
    let Some(status) = server.ended()? else {
        return Ok(false);
    };
    found.restarts += 1;
    let words = last_lines();
    found
        .complaints
        .push(format!("the server ended with {status}: {words}"));
    Ok(true)
}

fn workers<W: Worker>(seed: u64) -> Result<Vec<W>> {
    (0..W::CONNECTIONS)
        .map(|number| W::new(number, seed))
        .collect()
}

/// Makes errors by the campaign's injector.
pub(super) fn inject<W: Worker>(seed: u64, errors: u64, only: &str) -> Result<()> {
    let kinds = kind::common().filter(|kind| places(kind).is_some() && kind.name.contains(only));
    let kinds: Vec<&'static Kind> = kinds.collect();
    ensure!(
        !kinds.is_empty(),
        "no kind that can be made here contains {only:?}"
    );
    let mut sum = Errors {
        class: injector(seed),
        left_out: LEFT_OUT
            .iter()
            .zip(W::REASONS)
            .map(|(error, reason)| (format!("{error} at allocations"), reason.to_owned()))
            .collect(),
        ..Errors::default()
    };
    let mut server = W::start()?;
    let mut workers = workers::<W>(seed)?;
    let start = Instant::now();
    let found = Mutex::new(&mut sum);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for worker in &mut workers {
            let (kinds, found, stop) = (&kinds, &found, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let result = (0..ORDINARY)
                        .try_for_each(|_| worker.ordinary())
                        .and_then(|()| {
                            let kind = kinds[worker.random().random_range(0..kinds.len())];
                            worker.hit(kind).with_context(|| kind.name)
                        });
                    if let Err(error) = result {
                        worker.harmed(format!("{error:#}"));
                        // Without a server there is nothing more to do.
                        if worker.again().is_err() {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                    let mut sum = found
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                    let before = sum.injected;
                    add(&mut sum, worker);
                    if sum.injected >= errors {
                        stop.store(true, Ordering::Relaxed);
                    }
                    if sum.injected / PROGRESS > before / PROGRESS {
                        println!(
                            "{} errors of {errors} after {:?}",
                            sum.injected,
                            start.elapsed()
                        );
                        // What an interrupted run has found is not lost. The last word comes at the end.
                        if let Err(error) = tell(&Finding::Errors(sum.clone())) {
                            eprintln!("{error:#}");
                        }
                    }
                }
            });
        }
    });
    let ended = note_end(&mut server, &mut sum)?;
    for mut worker in workers {
        if !ended && let Err(error) = worker.check_all("the last error") {
            worker.harmed(format!("{error:#}"));
        }
        add(&mut sum, &mut worker);
    }
    if !ended {
        note_end(&mut server, &mut sum)?;
    }
    sum.ended = true;
    tell(&Finding::Errors(sum))
}

/// An attack on a bug that is made again: whether the request failed, and what was answered.
pub(super) type Attack<'a> = dyn FnMut(u64, &mut Errors) -> Result<bool> + 'a;

/// Attacks a bug that is made again by edits, while others work.
pub(super) fn attack<W: Worker>(class: &str, each: u64, attack: &mut Attack<'_>) -> Result<()> {
    let mut sum = Errors {
        class: class.to_owned(),
        ..Errors::default()
    };
    let mut server = W::start()?;
    let mut workers = workers::<W>(1)?;
    for turn in 0..each {
        match attack(turn, &mut sum) {
            Ok(failed) => sum.request_lost += u64::from(failed),
            Err(error) => {
                sum.others_harmed += 1;
                sum.complaints.push(format!("the attacker: {error:#}"));
            }
        }
        sum.injected += 1;
        for worker in &mut workers {
            if let Err(error) = (0..ORDINARY).try_for_each(|_| worker.ordinary()) {
                worker.harmed(format!("{error:#}"));
            }
        }
        if note_end(&mut server, &mut sum)? {
            break;
        }
    }
    for mut worker in workers {
        if sum.restarts == 0
            && let Err(error) = worker.check_all(class)
        {
            worker.harmed(format!("{error:#}"));
        }
        add(&mut sum, &mut worker);
    }
    sum.ended = true;
    tell(&Finding::Errors(sum))
}
