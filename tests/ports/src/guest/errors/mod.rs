//! Errors in requests, and a model of what the server has.
//!
//! Each connection has keys of its own, so it knows every answer. One in a few of its commands is hit by an error; all others
//! must be answered right, and what other keys have must stay.

mod bugs;
mod kinds;
mod worker;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rand::Rng;
use vmsrs_campaign::kind::{self, Kind};

pub(super) use bugs::attack;
use kinds::{COPIES, LEFT_OUT, places};
use worker::Worker;

use super::server::Server;
use super::tell;
use crate::plan::{Errors, Finding};
use crate::report::injector;

/// The build with bugs, which sends and receives by the calls that the injector sees.
const PROGRAM: &str = "memcached-attacked";
/// The injector, found by the loader.
const INJECTOR_LIBRARY: &str = "libinject.so";
/// Connections, each with a thread of its own here.
const CONNECTIONS: u64 = 6;
/// Commands without an error for each one with an error, at least.
const ORDINARY: u64 = 3;
/// Errors between two lines that tell how far it is.
const PROGRESS: u64 = 50;
/// Complaints that are kept.
const COMPLAINTS: usize = 24;

/// Adds what a connection has found.
fn add(sum: &mut Errors, one: Errors) {
    sum.injected += one.injected;
    sum.request_lost += one.request_lost;
    sum.no_effect += one.no_effect;
    sum.own_wrong += one.own_wrong;
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

fn start_server() -> Result<Server> {
    Server::start(
        PROGRAM,
        &["-t", "4", "-m", "128"],
        &[
            ("LD_PRELOAD", INJECTOR_LIBRARY),
            ("INJECT_COPIES", COPIES),
            ("MEMCACHED_SHARDS", "16"),
        ],
    )
}

/// Notes how the server ended, if it did.
fn note_end(server: &mut Server, found: &mut Errors) -> Result<bool> {
    let Some(status) = server.ended()? else {
        return Ok(false);
    };
    found.restarts += 1;
    found
        .complaints
        .push(format!("the server ended with {status}"));
    Ok(true)
}

/// Makes errors by the campaign's injector.
pub(super) fn inject(seed: u64, errors: u64, only: &str) -> Result<()> {
    let kinds = kind::common().filter(|kind| places(kind).is_some() && kind.name.contains(only));
    let kinds: Vec<&'static Kind> = kinds.collect();
    ensure!(
        !kinds.is_empty(),
        "no kind that can be made here contains {only:?}"
    );
    let mut sum = Errors {
        class: injector(seed),
        left_out: LEFT_OUT
            .map(|(error, reason)| (format!("{error} at allocations"), reason.to_owned()))
            .into(),
        ..Errors::default()
    };
    let mut server = start_server()?;
    let mut workers = Vec::new();
    for number in 0..CONNECTIONS {
        workers.push(Worker::new(number, seed)?);
    }
    let start = Instant::now();
    let made = Mutex::new(0u64);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for worker in &mut workers {
            let (kinds, made, stop) = (&kinds, &made, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let before = worker.found.injected;
                    let result = (0..ORDINARY)
                        .try_for_each(|_| worker.ordinary())
                        .and_then(|()| {
                            let kind = kinds[worker.random.random_range(0..kinds.len())];
                            worker.hit(kind).with_context(|| kind.name)
                        });
                    if let Err(error) = result {
                        worker.harmed(format!("{error:#}"));
                        // Without a server there is nothing more to do.
                        if worker.again().is_err() {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                    let mut made = made
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                    *made += worker.found.injected - before;
                    if *made >= errors {
                        stop.store(true, Ordering::Relaxed);
                    }
                    if *made % PROGRESS < worker.found.injected - before {
                        println!("{} errors of {errors} after {:?}", *made, start.elapsed());
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
        add(&mut sum, worker.found);
    }
    if !ended {
        note_end(&mut server, &mut sum)?;
    }
    tell(&Finding::Errors(sum))
}
