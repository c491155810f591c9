//! When one process of an app is killed in its requests, the others lose nothing.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use vmsrs::{App, Error};

use crate::counter::Counter;
use crate::host::Guest;
use crate::limits::patient;
use crate::steps;
use crate::{Behaviour, Machine};

/// Processes that run to their end.
const SURVIVORS: usize = 3;
/// Requests of each.
const REQUESTS: u64 = 200;
/// How often one more process is killed.
const KILLS: u64 = 5;
/// After how many requests the first one is killed; each later one lives that much longer.
const KILL_AFTER: u64 = 7;

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "killed_process_costs_other_processes_nothing",
    machine: Machine::Usual,
    steps: &[("parent", parent), ("worker", worker)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run_steps(&["parent"])?;
    let writes = guest.incidents("sealed-write")?.into_iter();
    let ours = writes.filter(|incident| incident["app"] == "many-processes");
    ensure!(ours.count() == 0, "a write hit a sealed frame");
    Ok(())
}

fn open() -> Result<(&'static App, Counter)> {
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("many-processes") }?;
    Ok((app, Counter::open(app, "total")?))
}

/// Counts in its own domain and in the total in one request, and prints each number that is committed.
fn worker(argument: &str) -> Result<()> {
    let (app, total) = open()?;
    let (key, count) = argument.split_once(' ').context("key and count")?;
    let own = Counter::open(app, key)?;
    let mut out = std::io::stdout().lock();
    for _ in 0..count.parse::<u64>()? {
        let now = own.domain().run_with(&patient(), |request| {
            request.enter(total.domain())?.keep();
            own.add(1);
            total.add(1);
            Ok::<_, Error>(own.get())
        })?;
        writeln!(out, "{now}")?;
    }
    Ok(())
}

fn spawn(key: &str, count: u64) -> Result<Child> {
    steps::command(BEHAVIOUR.name, "worker", &format!("{key} {count}"))?
        .stdout(Stdio::piped())
        .spawn()
        .context("start a worker")
}

/// The numbers that the worker prints, in order.
fn printed(child: &mut Child) -> Result<impl Iterator<Item = Result<u64>> + use<>> {
    let output = child.stdout.take().context("its output is a pipe")?;
    Ok(BufReader::new(output)
        .lines()
        .map(|line| Ok(line?.parse()?)))
}

fn parent(_: &str) -> Result<()> {
    let (app, total) = open()?;
    let mut survivors = Vec::new();
    for place in 0..SURVIVORS {
        survivors.push(spawn(&format!("survivor-{place}"), REQUESTS)?);
    }
    let mut victims = 0;
    for kill in 1..=KILLS {
        let mut victim = spawn("victim", u64::MAX)?;
        let mut numbers = printed(&mut victim)?;
        for _ in 0..kill * KILL_AFTER {
            victims = numbers.next().context("the victim ended")??;
        }
        victim.kill()?;
        victim.wait()?;
        // What it had printed before it died.
        for number in numbers {
            victims = number?;
        }
        // The last commit may not have been printed.
        let kept = Counter::open(app, "victim")?.read()?;
        ensure!(
            kept == victims || kept == victims + 1,
            "the victim printed {victims}, and {kept} are committed"
        );
        victims = kept;
    }
    let mut sum = victims;
    for (place, mut survivor) in survivors.into_iter().enumerate() {
        let numbers = printed(&mut survivor)?.collect::<Result<Vec<_>>>()?;
        ensure!(survivor.wait()?.success(), "survivor {place} failed");
        ensure!(
            numbers == (1..=REQUESTS).collect::<Vec<_>>(),
            "survivor {place} counted {numbers:?}"
        );
        let kept = Counter::open(app, &format!("survivor-{place}"))?.read()?;
        ensure!(kept == REQUESTS, "survivor {place} has {kept}");
        sum += kept;
    }
    let kept = total.read()?;
    ensure!(kept == sum, "the total is {kept}, the parts are {sum}");
    ensure!(app.info()?.drafts == 0, "a draft is left");
    Ok(())
}
