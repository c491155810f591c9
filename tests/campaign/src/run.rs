//! A run: many connections, errors among ordinary requests, and a comparison of everything.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmsrs_demo::client::Client;
use vmsrs_demo::command::Command;
use vmsrs_demo::model::{DirectoryChange, User};

use crate::class::Class;
use crate::directory::Directory;
use crate::host::Host;
use crate::kind::{Fate, all};
use crate::outcome::Outcome;
use crate::worker::Worker;
use crate::world::{World, lock};

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
    /// The virtual machine, where there is one.
    pub host: Option<Host>,
    /// How long one answer may take before it counts as a hang.
    pub reply_timeout: Duration,
    /// How long a server may be away.
    pub outage_limit: Duration,
    /// How long all may take.
    pub deadline: Duration,
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

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options contradict each other.
    #[error(
        "{users} users cannot be spread over {connections} connections; ask for at least one user each"
    )]
    Options {
        /// Users asked for.
        users: usize,
        /// Connections asked for.
        connections: usize,
    },
    /// The server cannot be reached, or fails before the run begins.
    #[error("no new ledger answers at {address} ({doing}); start one first")]
    Server {
        /// Where.
        address: SocketAddr,
        /// What was tried.
        doing: &'static str,
        /// What happened.
        source: io::Error,
    },
}

/// Runs to the end; `on_progress` is called several times a second.
///
/// # Errors
///
/// When it cannot begin. Whatever the server does is no error but the outcome.
pub fn run(options: &Options, mut on_progress: impl FnMut(Progress)) -> Result<Outcome, Error> {
    if options.connections == 0 || options.users < options.connections {
        return Err(Error::Options {
            users: options.users,
            connections: options.connections,
        });
    }
    let failed = |doing| {
        move |source| Error::Server {
            address: options.address,
            doing,
            source,
        }
    };
    let mut control =
        Client::connect(options.address, options.reply_timeout).map_err(failed("connecting"))?;
    let mut world = World::new(options);
    set_up(&mut world, &mut control).map_err(failed("adding the users"))?;
    let first = control.stats().map_err(failed("asking for STATS"))?;
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
    judge_lives(&world);
    Ok(Outcome::new(&world, seconds))
}

/// Makes the users and those whose state nobody changes, and gives all of them something to lose.
fn set_up(world: &mut World<'_>, client: &mut Client) -> io::Result<()> {
    let mut total = DirectoryChange::default();
    let mut prepare = |user: &mut User| -> io::Result<()> {
        client.ask(&format!("USER {}", user.name))?;
        for command in [
            Command::Deposit(1000),
            Command::NoteAdd(format!("a first note of {}", user.name)),
        ] {
            let reply = client.ask(&command.to_string())?;
            let (expected, change) = user.apply(&command, None);
            total += change;
            if !expected.matches(&reply) {
                return Err(io::Error::other(format!(
                    "{command} was answered with {}",
                    String::from_utf8_lossy(&reply)
                )));
            }
        }
        Ok(())
    };
    for user in &world.users {
        prepare(&mut lock(user))?;
    }
    for user in world.vaults.iter_mut().chain(&mut world.mirrors) {
        prepare(user)?;
    }
    world.add(total);
    Ok(())
}

/// Reads everything back over a new connection.
fn compare_everything(world: &World<'_>) -> io::Result<()> {
    let mut client = Client::connect(world.options.address, world.options.reply_timeout)?;
    let mut read = |name: &str| -> io::Result<Vec<u8>> {
        client.ask(&format!("USER {name}"))?;
        client.ask("READ")
    };
    let users: Vec<_> = world.users.iter().map(lock).collect();
    let unchanged = || world.vaults.iter().chain(&world.mirrors);
    for user in users.iter().map(|user| &**user).chain(unchanged()) {
        let found = read(&user.name)?;
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
            let found = read(&user.name)?;
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
    let found = Directory::parse(&client.ask("DIRECTORY")?).map_err(io::Error::other)?;
    let entries: Vec<String> = users
        .iter()
        .map(|user| user.entry())
        .chain(unchanged().map(User::entry))
        .collect();
    let mut others: Vec<String> = retired.iter().map(|user| user.name.clone()).collect();
    others.extend(lock(&world.strangers).iter().cloned());
    let totals = lock(&world.totals);
    let mut known = totals.known;
    known.listings += 1;
    for trouble in found.compare(&entries, &others, known, totals.maybe) {
        world.harm(format!("the directory in the end: {trouble}"));
    }
    Ok(())
}

/// Counts each end of the server that no error explains as a crash.
fn judge_lives(world: &World<'_>) {
    let crashes: Vec<String> = {
        let lives = lock(&world.lives);
        let ended = &lives[..lives.len().saturating_sub(1)];
        let unexplained = |life: &&crate::world::Life| life.ending.is_none() && !life.damaged;
        ended
            .iter()
            .filter(unexplained)
            .map(|life| life.suspects.first().copied().unwrap_or("none").to_owned())
            .collect()
    };
    for suspect in crashes {
        world.complain(format!("the server ended; suspected: {suspect}"));
        let kind = all().find(|kind| kind.name == suspect);
        world.count(kind.map_or("none", |kind| kind.name), Class::Crash);
    }
}

/// How often the server's process ended as the kinds of errors have it, and in how many of these
/// cases memory outside of domains was to blame.
pub(crate) fn restarts(world: &World<'_>) -> (u64, u64, u64) {
    let lives = lock(&world.lives);
    let ended = &lives[..lives.len().saturating_sub(1)];
    let of = |fate| {
        ended
            .iter()
            .filter(|life| life.ending.is_some_and(|kind| kind.fate == fate))
            .count() as u64
    };
    (ended.len() as u64, of(Fate::Untagged), of(Fate::Panics))
}
