//! One connection of a load.

use std::io;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use super::world::World;
use crate::bug::Bug;
use crate::client::Client;
use crate::command::Command;
use crate::plan::Plan;
use crate::reply::Reply;
use crate::users::{lock, lock_touched};

/// Refused connections after which a server is dead.
const REFUSED: u32 = 3;
/// Between two attempts to reach a server that closed a connection.
const RETRY: Duration = Duration::from_millis(100);

/// One connection.
pub(super) struct Worker<'a> {
    world: &'a World<'a>,
    connection: usize,
    client: Option<Client>,
    plan: Plan,
    /// Indices of its users.
    own: Vec<usize>,
    /// Index in `own` of the user of the next request.
    current: usize,
    /// Index of the user that was selected with `USER`.
    chosen: Option<usize>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(world: &'a World<'a>, connection: usize) -> Self {
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

    pub(super) fn run(&mut self, requests: usize, start: Instant) {
        for _ in 0..requests {
            if self.world.over.load(SeqCst) {
                return;
            }
            if start.elapsed() > self.world.options.deadline {
                self.world.over.store(true, SeqCst);
                self.world.innocent_failed(format!(
                    "the load was abandoned after {} s",
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
            Some(bug) => self.fatal(index, bug, &step.command),
            None => self.ordinary(index, &step.command),
        }
    }

    /// Sends an ordinary request and compares its answer with the model's.
    fn ordinary(&mut self, index: usize, command: &Command) {
        let world = self.world;
        let (mut user, mut receiver) = lock_touched(&world.users, index, command);
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
                    world.count.wrong.fetch_add(1, SeqCst);
                    world.complain(format!(
                        "request {number} {command}: {:?} instead of {expected:?}",
                        String::from_utf8_lossy(&line)
                    ));
                }
                return;
            }
            Ok(Reply::Failed(failure)) => {
                world.innocent_incident(failure.incident);
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

    /// Sends a fatal request and checks that its user's state is unchanged.
    fn fatal(&mut self, index: usize, bug: Bug, command: &Command) {
        let world = self.world;
        let user = lock(&world.users[index]);
        world.count.fatal.fetch_add(1, SeqCst);
        world.record(bug).sent();
        lock(&world.others_in_flight).record(world.count.in_flight.load(SeqCst));
        let start = Instant::now();
        let (number, answer) = self.ask(&command.to_string());
        let what = format!("request {number} ({})", bug.name());
        match answer.and_then(|line| Reply::parse(&line).map_err(io::Error::other)) {
            Ok(Reply::Failed(failure)) => world.record(bug).failed(&failure),
            Ok(Reply::Answer(line)) => {
                world.complain(format!(
                    "{what} was not detected: {:?}",
                    String::from_utf8_lossy(&line[..line.len().min(80)])
                ));
                return;
            }
            Err(error) => {
                world.complain(format!("{what}: {error}"));
                self.reconnect(number, Some(bug), &error);
                return;
            }
        }
        match self.client.as_mut().map(|client| client.ask("READ")) {
            Some(Ok(found)) => {
                let served_again = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                if world.compare(&format!("{} after {what}", user.name), &user.dump(), &found) {
                    world.record(bug).recovered(served_again);
                    world.count.recovered.fetch_add(1, SeqCst);
                }
            }
            Some(Err(error)) => {
                world.complain(format!("the request after {what}: {error}"));
                self.reconnect(number, Some(bug), &error);
            }
            None => {}
        }
    }

    /// Sends a line; returns its number and the answer.
    fn ask(&mut self, line: &str) -> (u64, io::Result<Vec<u8>>) {
        let options = self.world.options;
        let number = self.world.count.sent.fetch_add(1, SeqCst) + 1;
        self.world.count.in_flight.fetch_add(1, SeqCst);
        let client = match self.client.take() {
            Some(client) => Ok(client),
            None => Client::connect(options.address, options.reply_timeout),
        };
        let answer = client.and_then(|client| self.client.insert(client).ask(line));
        self.world.count.in_flight.fetch_sub(1, SeqCst);
        if answer.is_ok() {
            self.world.count.done.fetch_add(1, SeqCst);
        }
        (number, answer)
    }

    /// Connects again after `error`, or finds that the server is dead: its port is closed.
    fn reconnect(&mut self, number: u64, bug: Option<Bug>, error: &io::Error) {
        let options = self.world.options;
        self.client = None;
        let chosen = self.chosen.take();
        let connect = || {
            let mut client = Client::connect(options.address, options.reply_timeout)?;
            client.stats()?;
            if let Some(index) = chosen {
                client.ask(&format!("USER {}", self.world.names[index]))?;
            }
            io::Result::Ok(client)
        };
        let start = Instant::now();
        let mut refused = 0;
        while refused < REFUSED && start.elapsed() < options.reply_timeout {
            match connect() {
                Ok(client) => {
                    self.world.count.reconnects.fetch_add(1, SeqCst);
                    self.client = Some(client);
                    self.chosen = chosen;
                    return;
                }
                Err(error) => {
                    refused += u32::from(error.kind() == io::ErrorKind::ConnectionRefused);
                    thread::sleep(RETRY);
                }
            }
        }
        self.world.complain(format!(
            "connection {} cannot be restored: the server is dead",
            self.connection
        ));
        self.world.died(number, bug, error);
    }
}
