//! A run: many connections, errors among ordinary requests, and a comparison of everything.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmsrs_bed::window;
use vmsrs_ledger::client::{Client, NoServer};
use vmsrs_ledger::model::DirectoryChange;
use vmsrs_ledger::users::{TooFewUsers, check_spread, create, lock, read};
use vmsrs_report::steps::Count;

use crate::cause::{Cause, unexplained};
use crate::class::Class;
use crate::console::Console;
use crate::host::Host;
use crate::kind::{Kind, Missing, Tools, all};
use crate::outcome::Outcome;
use crate::worker::Worker;
use crate::world::{Ended, World};

/// How long the host may take at the end until it has all reports of failed requests.
const REPORTS_UNDER_WAY: Duration = Duration::from_secs(10);

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server.
    pub address: SocketAddr,
    /// Seed of the plan.
    pub seed: u64,
    /// Errors to make.
    pub errors: u64,
    /// Users, at least one for each connection.
    pub users: usize,
    /// Connections.
    pub connections: usize,
    /// Whether the server runs below the injector and a supervisor that starts it anew.
    pub injector: bool,
    /// Whether errors are made that end the server's process or the guest.
    pub restarts: bool,
    /// The kind of all errors, if not all kinds are made.
    pub only: Option<&'static Kind>,
    /// Whether the injector's server has protection keys, and so guards its variables.
    pub keys: bool,
    /// The virtual machine, where there is one.
    pub host: Option<Host>,
    /// How long one answer may take before it counts as a hang.
    pub reply_timeout: Duration,
    /// How long a server may be away.
    pub outage_limit: Duration,
    /// How long all may take.
    pub deadline: Duration,
}

impl Options {
    /// What errors can be made with.
    #[must_use]
    pub fn tools(&self) -> Tools {
        Tools {
            injector: self.injector,
            host: self.host.is_some(),
            poison: window::may_poison(),
        }
    }
}

/// Counts while it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Errors made.
    pub injected: u64,
    /// Errors there will be.
    pub total: u64,
    /// Errors that cost their own request alone.
    pub lost: u64,
    /// Others harmed.
    pub harmed: u64,
    /// Restarts of the server.
    pub restarts: u64,
    /// Requests.
    pub requests: u64,
}

impl Progress {
    /// What is shown of it, `elapsed` after the first request: with how fast errors are made, and how long it will take
    /// at that rate.
    #[must_use]
    pub fn count(&self, elapsed: Duration) -> Count {
        let rate = self.injected as f64 / elapsed.as_secs_f64().max(0.001);
        let left = self.total.saturating_sub(self.injected) as f64;
        let left = match self.injected {
            0 => "time left unknown".to_owned(),
            _ => format!("{:.0} min left", (left / rate / 60.0).ceil()),
        };
        Count {
            done: self.injected,
            total: self.total,
            words: format!(
                "errors, {} requests lost, {} others harmed, {} restarts; {rate:.1} a second, {left}",
                self.lost, self.harmed, self.restarts
            ),
        }
    }
}

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
    let start = Instant::now();
    let reported = loop {
        match host.failed_requests() {
            Ok(reported) if reported >= failures.number() => break reported,
            Ok(reported) if start.elapsed() > REPORTS_UNDER_WAY => break reported,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_has_a_rate_and_the_time_left() {
        let mut progress = Progress {
            total: 10_000,
            ..Progress::default()
        };
        let words = |progress: &Progress, seconds| {
            let elapsed = Duration::from_secs(seconds);
            progress.count(elapsed).words
        };
        assert!(words(&progress, 9).ends_with("time left unknown"));
        progress.injected = 400;
        let words = words(&progress, 100);
        assert!(words.ends_with("4.0 a second, 40 min left"), "{words}");
    }
}
