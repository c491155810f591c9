//! A run: many connections, errors among ordinary requests, and a comparison of everything.

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

/// How long the host may take at the end until it has all reports of failed requests.
const REPORTS_UNDER_WAY: Duration = Duration::from_secs(300);

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are more connections than users.
    #[error(transparent)]
    Users(#[from] TooFewUsers),
    /// A kind was asked for that cannot be made.
    #[error(transparent)]
    Kind(#[from] Missing),
    /// There is no new server.
    #[error(transparent)]
    Server(#[from] NoServer),
}

/// Runs to the end; `on_progress` is called several times a second.
///
/// # Errors
///
/// When it cannot begin. Whatever the server does is no error but the outcome.
pub fn run(options: &Options, mut on_progress: impl FnMut(Progress)) -> Result<Outcome, Error> {
    check_spread(options.users, options.connections)?;
    options.tools().check(options.only)?;
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
    // A server that died of the last request, or behind the last answer, is another one by now.
    if let Err(error) = reconnect(&world) {
        world.hang(format!("the server does not answer in the end: {error}"));
    }
    let console = read_console(&world);
    let ended = world.ended(console.as_ref());
    judge_ends(&world, &ended, console.as_ref());
    judge_incidents(&world);
    Ok(Outcome::new(&world, &ended, console.as_ref(), seconds))
}

/// Creates the users, and those whose state nobody changes.
fn set_up(world: &mut World<'_>, client: &mut Client) -> io::Result<()> {
    let mut total = DirectoryChange::default();
    for user in &world.users {
        total += create(client, &mut lock(user))?;
    }
    for user in world.vaults.iter_mut().chain(&mut world.mirrors) {
        total += create(client, user)?;
    }
    world.add(total);
    Ok(())
}

/// A new connection to a server that may be away for a while; its life is noted.
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
            // A refused connection comes back at once.
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// What the guest's console has told, where there is a guest. One that cannot be read is told as
/// harm: the verdict rests on it.
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
    let unchanged = || world.vaults.iter().chain(&world.mirrors);
    for user in users.iter().map(|user| &**user).chain(unchanged()) {
        let found = read(&mut client, &user.name)?;
        if !world.same(&user.dump(), &found) {
            world.harm(format!(
                "{} in the end: found {:?}, must be {:?}",
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
                    "{}, whom nobody used any more, has changed: {:?}, was {:?}",
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

/// Holds the host's count of incidents against what clients were told. Reports that are still under
/// way have some time to arrive.
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
    // A connection has one failure at a time, whose report may go down with the guest.
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

/// Counts each end of the server that nothing planned explains as a crash, and holds the restarts that
/// errors have cost against the ends.
fn judge_ends(world: &World<'_>, ended: &[Ended], console: Option<&Console>) {
    let crash = |suspect: Option<&str>, words: &str| {
        world.complain(format!(
            "crash: {words}; suspected: {}",
            suspect.unwrap_or("none")
        ));
        world.count.crashes.fetch_add(1, SeqCst);
        // It was cut off: now it is known by what.
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
