//! The load: many clients, a model beside them, and a comparison of everything in the end.
//!
//! Each user belongs to one connection. A request is sent while the model of the users that it
//! touches is locked, so the model knows exactly what the answer must be, whatever the other
//! connections do meanwhile.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::command::Command;
use crate::kind::Kind;
use crate::model::{DirectoryChange, User, differing_bytes, directory};
use crate::outcome::{Death, KindRecord, Outcome, Progress};
use crate::pace::Recorder;
use crate::percentile::percentile;
use crate::plan::{Plan, SMALLEST_GROUP};
use crate::reply::{Reply, Stats};

/// Trouble that is told in words; the rest is counted only.
const MOST_COMPLAINTS: usize = 20;
/// Ordinary requests that may fail before the load is given up.
const MOST_FAILURES: u64 = 200;
/// Attempts to reach a server that closed a connection.
const RECONNECTS: u32 = 3;

/// What load to make.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server.
    pub address: SocketAddr,
    /// Users, at least one for each connection.
    pub users: usize,
    /// Connections.
    pub connections: usize,
    /// Requests; rounded up to a multiple of `fatal_one_in` for each connection.
    pub requests: usize,
    /// Whether any request is fatal.
    pub faults: bool,
    /// One request in so many is fatal; at least [`SMALLEST_GROUP`].
    pub fatal_one_in: usize,
    /// Seed of the plan: the same one gives the same requests.
    pub seed: u64,
    /// How long one answer may take.
    pub reply_timeout: Duration,
    /// How long all requests together may take.
    pub deadline: Duration,
}

/// Why there is no result.
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
    /// A fatal request may need others that prepare it.
    #[error("one request in {one_in} cannot be fatal; ask for one in {SMALLEST_GROUP} at most")]
    TooManyFatal {
        /// The share asked for.
        one_in: usize,
    },
    /// The server cannot be reached, or fails before the load begins.
    #[error("no ledger answers at {address} ({doing}); start it first")]
    Server {
        /// Where.
        address: SocketAddr,
        /// What was tried.
        doing: &'static str,
        /// What happened.
        source: io::Error,
    },
    /// The users exist already, so the model does not know their state.
    #[error("the ledger at {address} has users already ({answer:?}); the load needs a new one")]
    Used {
        /// Where.
        address: SocketAddr,
        /// What `DIRECTORY` or `READ` said.
        answer: String,
    },
}

/// Runs the load to its end; `on_progress` is called several times a second.
///
/// # Errors
///
/// When the load cannot begin. A server that dies is no error but an outcome.
pub fn run(options: &Options, mut on_progress: impl FnMut(Progress)) -> Result<Outcome, Error> {
    if options.connections == 0 || options.users < options.connections {
        return Err(Error::Options {
            users: options.users,
            connections: options.connections,
        });
    }
    if options.fatal_one_in < SMALLEST_GROUP {
        return Err(Error::TooManyFatal {
            one_in: options.fatal_one_in,
        });
    }
    let unreachable = |doing| {
        move |source| Error::Server {
            address: options.address,
            doing,
            source,
        }
    };
    let mut control = Client::connect(options.address, options.reply_timeout)
        .map_err(unreachable("connecting"))?;
    let before = control.stats().map_err(unreachable("asking for STATS"))?;

    let per_connection = options
        .requests
        .div_ceil(options.connections)
        .next_multiple_of(options.fatal_one_in);
    let world = World::new(options, (per_connection * options.connections) as u64);
    world
        .set_up(&mut control)
        .map_err(unreachable("adding the users"))??;

    let start = world.pace.start();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..options.connections)
            .map(|connection| {
                let world = &world;
                scope.spawn(move || Worker::new(world, connection).run(per_connection, start))
            })
            .collect();
        while !workers.iter().all(thread::ScopedJoinHandle::is_finished) {
            on_progress(world.progress());
            thread::sleep(Duration::from_millis(100));
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    on_progress(world.progress());

    if world.death().is_none() {
        world.compare_everything();
    }
    let after = Client::connect(options.address, options.reply_timeout)
        .and_then(|mut client| client.stats());
    Ok(world.outcome(&before, after.ok().as_ref(), seconds))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the connections share.
struct World<'a> {
    options: &'a Options,
    total: u64,
    users: Vec<Mutex<User>>,
    names: Vec<String>,
    directory: Mutex<DirectoryChange>,
    kinds: Vec<Mutex<KindRecord>>,
    others_in_flight: Mutex<Vec<u64>>,
    complaints: Mutex<Vec<String>>,
    innocent_incidents: Mutex<Vec<u64>>,
    deaths: Mutex<Vec<(bool, Death)>>,
    over: AtomicBool,
    in_flight: AtomicU64,
    sent: AtomicU64,
    done: AtomicU64,
    fatal: AtomicU64,
    recovered: AtomicU64,
    failed: AtomicU64,
    wrong: AtomicU64,
    bytes_changed: AtomicU64,
    bytes_compared: AtomicU64,
    reconnects: AtomicU64,
    /// Of ordinary requests that were answered.
    pace: Recorder,
}

impl<'a> World<'a> {
    fn new(options: &'a Options, total: u64) -> Self {
        let names: Vec<String> = (0..options.users).map(|i| format!("user{i:03}")).collect();
        Self {
            options,
            total,
            users: names
                .iter()
                .cloned()
                .map(User::new)
                .map(Mutex::new)
                .collect(),
            names,
            directory: Mutex::default(),
            kinds: Kind::ALL.iter().map(|_| Mutex::default()).collect(),
            others_in_flight: Mutex::default(),
            complaints: Mutex::default(),
            innocent_incidents: Mutex::default(),
            deaths: Mutex::default(),
            over: AtomicBool::new(false),
            in_flight: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            done: AtomicU64::new(0),
            fatal: AtomicU64::new(0),
            recovered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            bytes_changed: AtomicU64::new(0),
            bytes_compared: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            pace: Recorder::new(),
        }
    }

    /// Makes all users and gives them something to lose.
    fn set_up(&self, client: &mut Client) -> io::Result<Result<(), Error>> {
        for (user, name) in self.users.iter().zip(&self.names) {
            client.ask(&format!("USER {name}"))?;
            let mut user = lock(user);
            let found = client.ask("READ")?;
            if found != user.dump().as_bytes() {
                return Ok(Err(Error::Used {
                    address: self.options.address,
                    answer: String::from_utf8_lossy(&found).chars().take(80).collect(),
                }));
            }
            let setup = [
                Command::Deposit(1000),
                Command::NoteAdd(format!("a first note of {name}")),
            ];
            for command in setup {
                let reply = client.ask(&command.to_string())?;
                let (expected, change) = user.apply(&command, None);
                *lock(&self.directory) += change;
                if !expected.matches(&reply) {
                    return Err(io::Error::other(format!(
                        "{command} was answered with {}",
                        String::from_utf8_lossy(&reply)
                    )));
                }
            }
        }
        Ok(Ok(()))
    }

    fn progress(&self) -> Progress {
        Progress {
            done: self.done.load(SeqCst),
            total: self.total,
            fatal: self.fatal.load(SeqCst),
            recovered: self.recovered.load(SeqCst),
            innocent_failed: self.failed.load(SeqCst) + self.wrong.load(SeqCst),
        }
    }

    fn complain(&self, words: String) {
        let mut complaints = lock(&self.complaints);
        if complaints.len() < MOST_COMPLAINTS {
            complaints.push(words.chars().take(400).collect());
        }
    }

    /// An ordinary request failed.
    fn innocent_failed(&self, words: String) {
        self.complain(words);
        if self.failed.fetch_add(1, SeqCst) >= MOST_FAILURES {
            self.over.store(true, SeqCst);
        }
    }

    /// The server cannot be reached any more.
    fn died(&self, number: u64, fatal: Option<Kind>, error: &io::Error) {
        self.over.store(true, SeqCst);
        let cause = fatal.map_or_else(|| error.to_string(), |kind| kind.name().to_owned());
        let death = Death {
            at_request: number,
            cause,
        };
        lock(&self.deaths).push((fatal.is_none(), death));
    }

    /// The first request that killed the server; one that was only hit by its death if there is no
    /// other.
    fn death(&self) -> Option<Death> {
        let deaths = lock(&self.deaths);
        let first = deaths
            .iter()
            .min_by_key(|(innocent, death)| (*innocent, death.at_request));
        first.map(|(_, death)| death.clone())
    }

    /// Compares one text with what it must be.
    fn compare(&self, what: &str, expected: &str, found: &[u8]) -> bool {
        let different = differing_bytes(expected.as_bytes(), found);
        self.bytes_compared.fetch_add(expected.len() as u64, SeqCst);
        self.bytes_changed.fetch_add(different, SeqCst);
        if different > 0 {
            self.complain(format!(
                "{what} differs in {different} bytes: found {:?}, must be {expected:?}",
                String::from_utf8_lossy(found)
            ));
        }
        different == 0
    }

    /// Reads everything back over a new connection.
    fn compare_everything(&self) {
        let read_back = || -> io::Result<()> {
            let mut client = Client::connect(self.options.address, self.options.reply_timeout)?;
            for (user, name) in self.users.iter().zip(&self.names) {
                client.ask(&format!("USER {name}"))?;
                let found = client.ask("READ")?;
                self.compare(name, &lock(user).dump(), &found);
            }
            let users: Vec<_> = self.users.iter().map(lock).collect();
            let users: Vec<&User> = users.iter().map(|guard| &**guard).collect();
            let mut total = *lock(&self.directory);
            total.listings += 1;
            let found = client.ask("DIRECTORY")?;
            self.compare("the directory", &directory(&users, total), &found);
            Ok(())
        };
        if let Err(error) = read_back() {
            self.innocent_failed(format!("reading everything back: {error}"));
        }
    }

    fn outcome(&self, before: &Stats, after: Option<&Stats>, seconds: f64) -> Outcome {
        let others = lock(&self.others_in_flight);
        let changed = |same: bool| u64::from(!same);
        let kinds = Kind::ALL
            .iter()
            .zip(&self.kinds)
            .map(|(kind, record)| lock(record).outcome(*kind));
        Outcome {
            protection: before.protection.clone(),
            users: self.options.users,
            connections: self.options.connections,
            requests: self.sent.load(SeqCst),
            fatal_requests: self.fatal.load(SeqCst),
            recovered: self.recovered.load(SeqCst),
            innocent_requests_failed: self.failed.load(SeqCst),
            innocent_answers_wrong: self.wrong.load(SeqCst),
            innocent_incidents: lock(&self.innocent_incidents).clone(),
            innocent_bytes_changed: self.bytes_changed.load(SeqCst),
            bytes_compared: self.bytes_compared.load(SeqCst),
            reconnects: self.reconnects.load(SeqCst),
            server_restarts: changed(after.is_some_and(|after| after.pid == before.pid)),
            guest_restarts: changed(after.is_none_or(|after| after.boot == before.boot)),
            others_in_flight_min: others.iter().copied().min().unwrap_or(0),
            others_in_flight_p50: percentile(&others, 50).unwrap_or(0),
            died: self.death(),
            kinds: kinds.collect(),
            complaints: lock(&self.complaints).clone(),
            seconds,
            pace: self.pace.pace(),
        }
    }
}

/// One connection.
struct Worker<'a> {
    world: &'a World<'a>,
    connection: usize,
    client: Option<Client>,
    plan: Plan,
    /// Indices of its users.
    own: Vec<usize>,
    /// The one in `own` for whom the next request is.
    current: usize,
    /// The one that this connection has chosen with `USER`, as an index into all users.
    chosen: Option<usize>,
}

impl<'a> Worker<'a> {
    fn new(world: &'a World<'a>, connection: usize) -> Self {
        let step = world.options.connections;
        Self {
            world,
            connection,
            client: None,
            plan: Plan::with_groups_of(world.options.fatal_one_in, world.options.seed, connection),
            own: (connection..world.users.len()).step_by(step).collect(),
            current: 0,
            chosen: None,
        }
    }

    fn run(&mut self, requests: usize, start: Instant) {
        for _ in 0..requests {
            if self.world.over.load(SeqCst) {
                return;
            }
            if start.elapsed() > self.world.options.deadline {
                self.world.over.store(true, SeqCst);
                self.world.innocent_failed(format!(
                    "the load was given up after {} s",
                    self.world.options.deadline.as_secs()
                ));
                return;
            }
            self.step();
        }
    }

    /// Sends one request.
    fn step(&mut self) {
        if !self.plan.fatal_is_due(self.world.options.faults) {
            self.current = self.plan.choose_user(self.current, self.own.len());
        }
        let index = self.own[self.current];
        if self.chosen != Some(index) {
            self.plan.skip();
            let command = Command::User(self.world.names[index].clone());
            self.ordinary(index, &command);
            self.chosen = Some(index);
            return;
        }
        let step = {
            let user = lock(&self.world.users[index]);
            let others: Vec<_> = (self.world.names.iter().cloned().enumerate())
                .filter(|(other, _)| *other != index)
                .collect();
            self.plan.next(&user, &others, self.world.options.faults)
        };
        match step.fatal {
            Some(kind) => self.fatal(index, kind, &step.command),
            None => self.ordinary(index, &step.command),
        }
    }

    /// Sends an ordinary request and holds its answer against the model.
    fn ordinary(&mut self, index: usize, command: &Command) {
        let world = self.world;
        // Models are locked in order of index, so that no two connections wait for each other.
        let receiver = match command {
            Command::Transfer { receiver, .. } => Some(*receiver),
            _ => None,
        };
        let early = receiver
            .filter(|receiver| *receiver < index)
            .map(|receiver| lock(&world.users[receiver]));
        let mut user = lock(&world.users[index]);
        let mut receiver = early.or_else(|| Some(lock(&world.users[receiver?])));

        let before = (user.clone(), receiver.as_deref().cloned());
        let (expected, change) = user.apply(command, receiver.as_deref_mut());
        let sent = Instant::now();
        let (number, answer) = self.ask(&command.to_string());
        let reply = answer.and_then(|line| Reply::parse(&line).map_err(io::Error::other));
        let complaint = match reply {
            Ok(Reply::Answer(line)) => {
                world.pace.answered(sent);
                *lock(&world.directory) += change;
                if !expected.matches(&line) {
                    world.wrong.fetch_add(1, SeqCst);
                    world.complain(format!(
                        "request {number} {command}: {:?} instead of {expected:?}",
                        String::from_utf8_lossy(&line)
                    ));
                }
                return;
            }
            Ok(Reply::Failed(failure)) => {
                let mut incidents = lock(&world.innocent_incidents);
                if incidents.len() < MOST_COMPLAINTS {
                    incidents.push(failure.incident);
                }
                format!("failed as {failure:?}")
            }
            Err(error) => {
                self.reconnect(number, None, &error);
                error.to_string()
            }
        };
        // It failed, so it changed nothing.
        *user = before.0;
        if let (Some(receiver), Some(before)) = (receiver.as_deref_mut(), before.1) {
            *receiver = before;
        }
        world.innocent_failed(format!("request {number} {command}: {complaint}"));
    }

    /// Sends a fatal request and checks that its user's state is as before.
    fn fatal(&mut self, index: usize, kind: Kind, command: &Command) {
        let world = self.world;
        let user = lock(&world.users[index]);
        let record = &world.kinds[Kind::ALL.iter().position(|k| *k == kind).unwrap_or(0)];
        world.fatal.fetch_add(1, SeqCst);
        lock(record).sent();
        lock(&world.others_in_flight).push(world.in_flight.load(SeqCst));
        let start = Instant::now();
        let (number, answer) = self.ask(&command.to_string());
        let what = format!("request {number} ({})", kind.name());
        match answer.and_then(|line| Reply::parse(&line).map_err(io::Error::other)) {
            Ok(Reply::Failed(failure)) => lock(record).failed(&failure),
            Ok(Reply::Answer(line)) => {
                world.complain(format!(
                    "{what} was not noticed: {:?}",
                    String::from_utf8_lossy(&line[..line.len().min(80)])
                ));
                return;
            }
            Err(error) => {
                world.complain(format!("{what}: {error}"));
                self.reconnect(number, Some(kind), &error);
                return;
            }
        }
        match self.client.as_mut().map(|client| client.ask("READ")) {
            Some(Ok(found)) => {
                let served_again = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                if world.compare(&format!("{} after {what}", user.name), &user.dump(), &found) {
                    lock(record).recovered(served_again);
                    world.recovered.fetch_add(1, SeqCst);
                }
            }
            Some(Err(error)) => {
                world.complain(format!("the request after {what}: {error}"));
                self.reconnect(number, Some(kind), &error);
            }
            None => {}
        }
    }

    /// Sends a line: its number, and what came back.
    fn ask(&mut self, line: &str) -> (u64, io::Result<Vec<u8>>) {
        let options = self.world.options;
        let number = self.world.sent.fetch_add(1, SeqCst) + 1;
        self.world.in_flight.fetch_add(1, SeqCst);
        let client = match self.client.take() {
            Some(client) => Ok(client),
            None => Client::connect(options.address, options.reply_timeout),
        };
        let answer = client.and_then(|client| self.client.insert(client).ask(line));
        self.world.in_flight.fetch_sub(1, SeqCst);
        if answer.is_ok() {
            self.world.done.fetch_add(1, SeqCst);
        }
        (number, answer)
    }

    /// Connects anew after `error`, or finds out that the server is dead.
    fn reconnect(&mut self, number: u64, fatal: Option<Kind>, error: &io::Error) {
        let options = self.world.options;
        self.client = None;
        let chosen = self.chosen.take();
        for attempt in 0..RECONNECTS {
            thread::sleep(Duration::from_millis(100 * u64::from(attempt)));
            let connected =
                Client::connect(options.address, options.reply_timeout).and_then(|mut client| {
                    client.stats()?;
                    if let Some(index) = chosen {
                        client.ask(&format!("USER {}", self.world.names[index]))?;
                    }
                    Ok(client)
                });
            if let Ok(client) = connected {
                self.world.reconnects.fetch_add(1, SeqCst);
                self.client = Some(client);
                self.chosen = chosen;
                return;
            }
        }
        self.world.complain(format!(
            "connection {} cannot be made anew: the server is dead",
            self.connection
        ));
        self.world.died(number, fatal, error);
    }
}
