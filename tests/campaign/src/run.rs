//! A run: many connections, errors among ordinary requests, and a comparison of everything at the end.

use std::fs;
use std::io;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use vmsrs_bed::patience;
use vmsrs_ledger::client::{Client, NoServer};
use vmsrs_ledger::model::DirectoryChange;
use vmsrs_ledger::users::{TooFewUsers, check_spread, create, lock, read};

use crate::cause::{Cause, unexplained};
use crate::class::Class;
use crate::console::Console;
use crate::kind::{Missing, all};
use crate::options::Options;
use crate::outcome::Outcome;
use crate::progress::Progress;
use crate::worker::Worker;
use crate::world::{Ended, World};

/// Limit for the last reports of failed requests to reach the host.
const REPORTS_UNDER_WAY: Duration = Duration::from_secs(300);

/// Why the run could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are more connections than users.
    #[error(transparent)]
    Users(#[from] TooFewUsers),
    /// The kind of `only` cannot be made.
    #[error(transparent)]
    Kind(#[from] Missing),
    /// There is no new server at the address.
    #[error(transparent)]
    Server(#[from] NoServer),
}

/// Does the run; `on_progress` is called several times a second.
///
/// # Errors
///
/// When it cannot start. Whatever the server does is an outcome, not an error.
pub fn run(options: &Options, mut on_progress: impl FnMut(Progress)) -> Result<Outcome, Error> {
    check_spread(options.users, options.connections)?;
    options.tools().check(&options.only)?;
    let no_server = |doing| NoServer::at(options.address, doing);
    let mut control =
        Client::connect(options.address, options.reply_timeout).map_err(no_server("connecting"))?;
    let mut world = World::new(options);
    set_up(&mut world, &mut control).map_err(no_server("adding the users"))?;
    let first = control.stats().map_err(no_server("asking for STATS"))?;
    world.life(&first);
    drop(control);

    let start = Instant::now();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..options.connections)
            .map(|connection| {
                let world = &world;
                scope.spawn(move || Worker::new(world, connection).run(start))
            })
            .collect();
        while !workers.iter().all(thread::ScopedJoinHandle::is_finished) {
            on_progress(world.progress());
            thread::sleep(Duration::from_millis(200));
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    on_progress(world.progress());
    if world.count.hangs.load(SeqCst) == 0
        && let Err(error) = compare_everything(&world)
    {
        world.harm(format!("reading everything back: {error}"));
    }
    // If the server died of the last request or after the last answer, this notices the next one.
    if let Err(error) = reconnect(&world) {
        world.hang(format!("the server does not answer in the end: {error}"));
    }
    let console = read_console(&world);
    let ended = world.ended(console.as_ref());
    judge_ends(&world, &ended, console.as_ref());
    judge_incidents(&world);
    Ok(Outcome::new(&world, &ended, console.as_ref(), seconds))
}

/// Creates the users, and those whose state never changes.
fn set_up(world: &mut World<'_>, client: &mut Client) -> io::Result<()> {
    let mut total = DirectoryChange::default();
    for user in &world.users {
        total += create(client, &mut lock(user))?;
    }
    for user in world.targets.iter_mut().chain(&mut world.mirrors) {
        total += create(client, user)?;
    }
    world.add(total);
    Ok(())
}

/// A new connection to a server that may be restarting; records its life.
fn reconnect(world: &World<'_>) -> io::Result<Client> {
    let options = world.options;
    let start = Instant::now();
    loop {
        let connected =
            Client::connect(options.address, options.reply_timeout).and_then(|mut client| {
                let stats = client.stats()?;
                Ok((client, stats))
            });
        match connected {
            Ok((client, stats)) => {
                world.life(&stats);
                return Ok(client);
            }
            Err(error) if start.elapsed() > options.outage_limit => return Err(error),
            // A refused connection fails at once.
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The guest's console, if there is a guest. If it cannot be read, that counts as harm: the verdict depends on it.
fn read_console(world: &World<'_>) -> Option<Console> {
    let host = world.options.host.as_ref()?;
    match fs::read(&host.console) {
        Ok(text) => {
            let text = String::from_utf8_lossy(&text);
            Some(Console::parse(&text, world.panics_planned()))
        }
        Err(error) => {
            world.harm(format!("the guest's console cannot be read: {error}"));
            None
        }
    }
}

/// Reads everything back over a new connection.
fn compare_everything(world: &World<'_>) -> io::Result<()> {
    let mut client = reconnect(world)?;
    let users: Vec<_> = world.users.iter().map(lock).collect();
    let unchanged = || world.targets.iter().chain(&world.mirrors);
    for user in users.iter().map(|user| &**user).chain(unchanged()) {
        let found = read(&mut client, &user.name)?;
        if !world.same(&user.dump(), &found) {
            world.harm(format!(
                "{} in the end: found {:?}, expected {:?}",
                user.name,
                String::from_utf8_lossy(&found),
                user.dump()
            ));
        }
    }
    let retired = lock(&world.retired);
    for user in retired.iter() {
        if let Some(dump) = &user.dump {
            let found = read(&mut client, &user.name)?;
            if found != *dump {
                world.harm(format!(
                    "{}, who was out of use, has changed: {:?}, was {:?}",
                    user.name,
                    String::from_utf8_lossy(&found),
                    String::from_utf8_lossy(dump)
                ));
            }
        }
    }
    drop(retired);
    drop(users);
    world.compare_directory(&client.ask("DIRECTORY")?, "in the end");
    Ok(())
}

/// Compares the host's count of incidents with the failures in answers; reports in transit have time to arrive.
fn judge_incidents(world: &World<'_>) {
    let Some(host) = &world.options.host else {
        return;
    };
    let failures = lock(&world.failures);
    let limit = patience::scaled(REPORTS_UNDER_WAY);
    let start = Instant::now();
    let reported = loop {
        match host.failed_requests() {
            Ok(reported) if reported >= failures.number() => break reported,
            Ok(reported) if start.elapsed() > limit => break reported,
            Ok(_) => thread::sleep(Duration::from_millis(200)),
            Err(error) => {
                return world.harm(format!("the host's incidents cannot be counted: {error}"));
            }
        }
    };
    // Each connection has at most one report in transit, which a panic of the guest may lose.
    let lost = world.panics_planned() * world.options.connections as u64;
    let unexplained = failures.unexplained(reported, lost);
    let count = &world.count;
    count.incidents_reported.store(reported, SeqCst);
    count.incidents_unexplained.store(unexplained, SeqCst);
    if unexplained > 0 {
        world.complain(format!(
            "the host counts {reported} incidents of failed requests; clients were told of {}, and {} \
             more may have failed without an answer",
            failures.number(),
            failures.unanswered(),
        ));
    }
}

/// Counts each unplanned end of the server as a crash, and matches restarts with ends.
fn judge_ends(world: &World<'_>, ended: &[Ended], console: Option<&Console>) {
    let crash = |suspect: Option<&str>, words: &str| {
        world.complain(format!(
            "crash: {words}; suspected: {}",
            suspect.unwrap_or("none")
        ));
        world.count.crashes.fetch_add(1, SeqCst);
        // It counted as cut off so far.
        if let Some(kind) = all().find(|kind| Some(kind.name) == suspect) {
            world.count.cut_off.fetch_sub(1, SeqCst);
            world.made(kind, Class::Crash, None);
        }
    };
    for end in ended {
        if let Cause::Crash(words) = &end.cause {
            crash(end.suspect, words);
        }
    }
    for (number, life) in lock(&world.lives).iter().enumerate() {
        let cause = ended.get(number).map(|end| &end.cause);
        for words in unexplained(life, cause) {
            world.count.restarts_unexplained.fetch_add(1, SeqCst);
            world.complain(format!("restart: {words}"));
        }
    }
    for end in console.iter().flat_map(|console| &console.ends) {
        if !world.has_lived(&end.boot, end.pid) {
            let words = format!(
                "process {} ended with code {} before it answered anybody; the console before: {:?}",
                end.pid, end.code, end.before
            );
            crash(None, &words);
        }
    }
}
