//! Several processes of one app: one is killed, the others lose nothing.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use vmsrs::{App, Domain, Error, Request};

use crate::host::Guest;
use crate::{Behaviour, Machine};

/// Processes that run to their end.
const SURVIVORS: usize = 3;
/// Requests of each.
const REQUESTS: u64 = 200;
/// Times that one more process is killed, after a number of requests that grows by this.
const KILLS: u64 = 5;
const KILL_AFTER: u64 = 7;

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "killed_process_costs_other_processes_nothing",
    machine: Machine::Usual,
    steps: &[("parent", parent), ("worker", worker)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run("parent", "")?;
    let broken = guest.incidents("sealed-write")?.into_iter();
    let ours = broken.filter(|incident| incident["app"] == "many-processes");
    ensure!(ours.count() == 0, "no write hit a sealed frame");
    Ok(())
}

fn open() -> Result<(&'static App, &'static Domain)> {
    // SAFETY: no request here lends its locals to others.
    let app = unsafe { App::open("many-processes") }?;
    Ok((app, app.domain("total")?))
}

/// The number that a domain's root leads to; made by its first request.
fn number(request: &Request) -> Result<*mut u64, Error> {
    if let Some(cell) = request.root::<u64>() {
        return Ok(cell.as_ptr());
    }
    let cell = request.alloc(0u64)?;
    request.set_root(Some(cell.into()))?;
    Ok(cell)
}

/// Counts in its own domain and in the total, in one request, and tells each one that is committed.
fn worker(argument: &str) -> Result<()> {
    let (app, total) = open()?;
    let (key, count) = argument.split_once(' ').context("key and count")?;
    let own = app.domain(key)?;
    let mut out = std::io::stdout().lock();
    for _ in 0..count.parse::<u64>()? {
        let now = own.run(|request| {
            let cell = number(request)?;
            let total = request.enter(total)?.keep();
            // SAFETY: both domains are held, and their roots lead to numbers.
            unsafe {
                *cell += 1;
                *total.root_address().cast::<u64>() += 1;
                Ok::<_, Error>(*cell)
            }
        })?;
        writeln!(out, "{now}")?;
    }
    Ok(())
}

fn spawn(key: &str, count: u64) -> Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(["guest", BEHAVIOUR.name, "worker", &format!("{key} {count}")])
        .stdout(Stdio::piped())
        .spawn()
        .context("start a worker")
}

/// Numbers that the worker tells, in order.
fn told(child: &mut Child) -> Result<impl Iterator<Item = Result<u64>> + use<>> {
    let output = child.stdout.take().context("its output is a pipe")?;
    Ok(BufReader::new(output)
        .lines()
        .map(|line| Ok(line?.parse()?)))
}

fn parent(_: &str) -> Result<()> {
    let (app, total) = open()?;
    total.run(|request| number(request).map(drop))?;
    let mut survivors = Vec::new();
    for place in 0..SURVIVORS {
        survivors.push(spawn(&format!("survivor-{place}"), REQUESTS)?);
    }
    let mut victims = 0;
    for kill in 1..=KILLS {
        let mut victim = spawn("victim", u64::MAX)?;
        let mut numbers = told(&mut victim)?;
        for _ in 0..kill * KILL_AFTER {
            victims = numbers.next().context("the victim counts")??;
        }
        victim.kill()?;
        victim.wait()?;
        // What it had told before it died.
        for number in numbers {
            victims = number?;
        }
        // A committed request may not have been told any more.
        let kept = read(app.domain("victim")?)?;
        ensure!(
            kept == victims || kept == victims + 1,
            "the victim told {victims}, {kept} are kept"
        );
        victims = kept;
    }
    let mut sum = victims;
    for (place, mut survivor) in survivors.into_iter().enumerate() {
        let numbers = told(&mut survivor)?.collect::<Result<Vec<_>>>()?;
        ensure!(survivor.wait()?.success(), "survivor {place} ends well");
        ensure!(
            numbers == (1..=REQUESTS).collect::<Vec<_>>(),
            "survivor {place} counted without a gap"
        );
        let kept = read(app.domain(format!("survivor-{place}"))?)?;
        ensure!(kept == REQUESTS, "survivor {place} has {kept}");
        sum += kept;
    }
    let kept = read(total)?;
    ensure!(kept == sum, "the total is {kept}, the parts are {sum}");
    ensure!(app.info()?.drafts == 0, "no draft is left");
    Ok(())
}

/// A domain's number, read under its lock.
fn read(domain: &'static Domain) -> Result<u64> {
    // SAFETY: the domain is held, and its root leads to a number.
    Ok(domain.run(|request| number(request).map(|cell| unsafe { *cell }))?)
}
