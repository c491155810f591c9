//! The state that the connections of a load share: models and results.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard};

use vmsrs_report::distribution::Distribution;

use super::options::Options;
use super::outcome::{BugRecord, Death, Outcome, Progress};
use super::pace::Recorder;
use crate::bug::Bug;
use crate::client::Client;
use crate::model::{DirectoryChange, User, differing_bytes, directory};
use crate::reply::Stats;
use crate::users::{create, lock, read};

/// Complaints that are kept in words; the rest is only counted.
const MOST_COMPLAINTS: usize = 20;
/// Ordinary requests that may fail before the load is abandoned.
const MOST_FAILURES: u64 = 200;

/// The shared state.
pub(super) struct World<'a> {
    pub(super) options: &'a Options,
    total: u64,
    pub(super) users: Vec<Mutex<User>>,
    pub(super) names: Vec<String>,
    pub(super) directory: Mutex<DirectoryChange>,
    bugs: [Mutex<BugRecord>; Bug::ALL.len()],
    pub(super) others_in_flight: Mutex<Distribution>,
    complaints: Mutex<Vec<String>>,
    innocent_incidents: Mutex<Vec<u64>>,
    deaths: Mutex<Vec<(bool, Death)>>,
    pub(super) over: AtomicBool,
    pub(super) count: Counters,
    /// Of ordinary requests that were answered.
    pub(super) pace: Recorder,
}

/// Counters of the run.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) in_flight: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) done: AtomicU64,
    pub(super) fatal: AtomicU64,
    pub(super) recovered: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) wrong: AtomicU64,
    pub(super) bytes_changed: AtomicU64,
    pub(super) bytes_compared: AtomicU64,
    pub(super) reconnects: AtomicU64,
}

impl<'a> World<'a> {
    pub(super) fn new(options: &'a Options, total: u64) -> Self {
        let names: Vec<String> = (0..options.users).map(|i| format!("user{i:03}")).collect();
        let users = names.iter().map(|name| Mutex::new(User::new(name)));
        Self {
            options,
            total,
            users: users.collect(),
            names,
            directory: Mutex::default(),
            bugs: Default::default(),
            others_in_flight: Mutex::default(),
            complaints: Mutex::default(),
            innocent_incidents: Mutex::default(),
            deaths: Mutex::default(),
            over: AtomicBool::new(false),
            count: Counters::default(),
            pace: Recorder::new(),
        }
    }

    /// Creates all users.
    pub(super) fn set_up(&self, client: &mut Client) -> io::Result<()> {
        for user in &self.users {
            *lock(&self.directory) += create(client, &mut lock(user))?;
        }
        Ok(())
    }

    /// The record of requests that reach a bug.
    pub(super) fn record(&self, bug: Bug) -> MutexGuard<'_, BugRecord> {
        lock(&self.bugs[bug as usize])
    }

    pub(super) fn progress(&self) -> Progress {
        Progress {
            done: self.count.done.load(SeqCst),
            total: self.total,
            fatal: self.count.fatal.load(SeqCst),
            recovered: self.count.recovered.load(SeqCst),
            innocent_failed: self.count.failed.load(SeqCst) + self.count.wrong.load(SeqCst),
        }
    }

    pub(super) fn complain(&self, words: String) {
        let mut complaints = lock(&self.complaints);
        if complaints.len() < MOST_COMPLAINTS {
            complaints.push(words.chars().take(400).collect());
        }
    }

    /// Notes the incident of an ordinary request.
    pub(super) fn innocent_incident(&self, incident: u64) {
        let mut incidents = lock(&self.innocent_incidents);
        if incidents.len() < MOST_COMPLAINTS {
            incidents.push(incident);
        }
    }

    /// An ordinary request failed.
    pub(super) fn innocent_failed(&self, words: String) {
        self.complain(words);
        if self.count.failed.fetch_add(1, SeqCst) >= MOST_FAILURES {
            self.over.store(true, SeqCst);
        }
    }

    /// Records that the server cannot be reached any more.
    pub(super) fn died(&self, number: u64, bug: Option<Bug>, error: &io::Error) {
        self.over.store(true, SeqCst);
        let cause = bug.map_or_else(|| error.to_string(), |bug| bug.name().to_owned());
        let death = Death {
            at_request: number,
            cause,
        };
        lock(&self.deaths).push((bug.is_none(), death));
    }

    /// The first request that killed the server, or else the first that was hit by its death.
    pub(super) fn death(&self) -> Option<Death> {
        let deaths = lock(&self.deaths);
        let first = deaths
            .iter()
            .min_by_key(|(innocent, death)| (*innocent, death.at_request));
        first.map(|(_, death)| death.clone())
    }

    /// Compares a text with the expected one.
    pub(super) fn compare(&self, what: &str, expected: &str, found: &[u8]) -> bool {
        let different = differing_bytes(expected.as_bytes(), found);
        self.count
            .bytes_compared
            .fetch_add(expected.len() as u64, SeqCst);
        self.count.bytes_changed.fetch_add(different, SeqCst);
        if different > 0 {
            self.complain(format!(
                "{what} differs in {different} bytes: found {:?}, expected {expected:?}",
                String::from_utf8_lossy(found)
            ));
        }
        different == 0
    }

    /// Reads everything back over a new connection.
    pub(super) fn compare_everything(&self) {
        let read_back = || -> io::Result<()> {
            let mut client = Client::connect(self.options.address, self.options.reply_timeout)?;
            for (user, name) in self.users.iter().zip(&self.names) {
                let found = read(&mut client, name)?;
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

    pub(super) fn outcome(&self, before: &Stats, after: Option<&Stats>, seconds: f64) -> Outcome {
        let others = lock(&self.others_in_flight);
        let changed = |same: bool| u64::from(!same);
        Outcome {
            protection: before.protection.clone(),
            users: self.options.users,
            connections: self.options.connections,
            requests: self.count.sent.load(SeqCst),
            fatal_requests: self.count.fatal.load(SeqCst),
            recovered: self.count.recovered.load(SeqCst),
            innocent_requests_failed: self.count.failed.load(SeqCst),
            innocent_answers_wrong: self.count.wrong.load(SeqCst),
            innocent_incidents: lock(&self.innocent_incidents).clone(),
            innocent_bytes_changed: self.count.bytes_changed.load(SeqCst),
            bytes_compared: self.count.bytes_compared.load(SeqCst),
            reconnects: self.count.reconnects.load(SeqCst),
            server_restarts: changed(after.is_some_and(|after| after.pid == before.pid)),
            guest_restarts: changed(after.is_none_or(|after| after.boot == before.boot)),
            others_in_flight_min: others.min().unwrap_or(0),
            others_in_flight_p50: others.median().unwrap_or(0),
            died: self.death(),
            kinds: Bug::ALL.map(|bug| self.record(bug).outcome(bug)).into(),
            complaints: lock(&self.complaints).clone(),
            seconds,
            pace: self.pace.pace(),
        }
    }
}
