//! The state that the connections share: the models, the server's lives, the tally.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use vmsrs_ledger::command::Command;
use vmsrs_ledger::directory::Directory;
use vmsrs_ledger::model::{DirectoryChange, User};
use vmsrs_ledger::reply::Stats;
use vmsrs_ledger::users::lock;

use crate::cause::{Cause, Evidence, cause};
use crate::class::Class;
use crate::console::Console;
use crate::failures::Failures;
use crate::kind::{Fate, Kind};
use crate::life::Life;
use crate::options::Options;
use crate::progress::Progress;

/// Complaints that are kept in words; the rest is only counted.
const MOST_COMPLAINTS: usize = 40;
/// Harm after which the run is abandoned.
const MOST_HARM: u64 = 100;
/// Requests of each connection in the trace; also of one that hangs.
const TRACE: usize = 100;
/// Number of targets and of mirrors; the injector has the same constant.
const TARGETS: usize = 4;

/// The run must end; the reason has been recorded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Over;

/// A user that its own error has left with wrong data; it is not used any more.
#[derive(Debug)]
pub(crate) struct Retired {
    pub(crate) name: String,
    /// Its state, if it could be read.
    pub(crate) dump: Option<Vec<u8>>,
}

/// The expected counts of the directory.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) known: DirectoryChange,
    /// Changes that may or may not have been made.
    pub(crate) maybe: DirectoryChange,
}

impl Totals {
    /// Adopts the counts of a listing that was taken while no request was in flight: they are certain.
    fn settle(&mut self, found: DirectoryChange) {
        *self = Self {
            known: found,
            maybe: DirectoryChange::default(),
        };
    }
}

/// When the directory is compared next: after this many lives of the server, or this many errors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NextComparison {
    lives: usize,
    errors: u64,
}

/// Errors between two comparisons of the directory in one life of the server. There are only a few in each run, since
/// all connections have to wait for them.
fn comparison_period(errors: u64) -> u64 {
    (errors / 8).max(25)
}

/// Counters of the run.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) injected: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) harmed: AtomicU64,
    pub(crate) commits_lost: AtomicU64,
    pub(crate) hangs: AtomicU64,
    pub(crate) crashes: AtomicU64,
    pub(crate) restarts_unexplained: AtomicU64,
    pub(crate) not_reached: AtomicU64,
    pub(crate) cut_off: AtomicU64,
    pub(crate) bytes_compared: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    pub(crate) errors_in_flight: AtomicU64,
    pub(crate) most_errors_in_flight: AtomicU64,
    pub(crate) lost_in_damaged: AtomicU64,
    pub(crate) directories_compared: AtomicU64,
    pub(crate) incidents_reported: AtomicU64,
    pub(crate) incidents_unexplained: AtomicU64,
}

/// The shared state.
pub(crate) struct World<'a> {
    pub(crate) options: &'a Options,
    pub(crate) users: Vec<Mutex<User>>,
    /// Users that never change: stray writes aim at them.
    pub(crate) targets: Vec<User>,
    /// Users that never change, with mirrors: their frames are corrupted in the host's memory.
    pub(crate) mirrors: Vec<User>,
    /// Held while one of their frames is corrupt.
    pub(crate) damaging: Mutex<()>,
    pub(crate) retired: Mutex<Vec<Retired>>,
    /// Users with an error in their creation.
    pub(crate) strangers: Mutex<Vec<String>>,
    pub(crate) totals: Mutex<Totals>,
    /// Outcomes of errors, by kind.
    pub(crate) tally: Mutex<BTreeMap<&'static str, BTreeMap<Class, u64>>>,
    pub(crate) detectors: Mutex<BTreeMap<&'static str, BTreeMap<String, u64>>>,
    pub(crate) lives: Mutex<Vec<Life>>,
    /// Held during an error that ends the server.
    pub(crate) ending: Mutex<()>,
    /// Held while the supervisor kills a process.
    pub(crate) supervisor: Mutex<()>,
    /// Read-locked during each error and its judgement, and write-locked during one that may damage memory outside of
    /// domains: if the process ends then, that error is the cause.
    pub(crate) quiet: RwLock<()>,
    /// Read-locked by each connection while it sends requests, and write-locked while the directory is compared: no
    /// request is in flight then.
    pub(crate) rounds: RwLock<()>,
    /// Held by the connection that compares it.
    pub(crate) comparing: Mutex<()>,
    /// When the directory is compared next.
    pub(crate) next_comparison: Mutex<NextComparison>,
    /// Whether answers wait for the seal; read-locked by every request in flight.
    pub(crate) sealing: RwLock<bool>,
    pub(crate) count: Counters,
    pub(crate) complaints: Mutex<Vec<String>>,
    pub(crate) over: AtomicBool,
    /// For each connection, the life of the server that it belongs to, and a handle.
    handles: Vec<Mutex<Option<(usize, TcpStream)>>>,
    /// Incidents of requests without an error.
    pub(crate) incidents: Mutex<Vec<u64>>,
    /// Failures that clients were told of.
    pub(crate) failures: Mutex<Failures>,
    latest: Mutex<&'static str>,
    trace: Mutex<BTreeMap<usize, VecDeque<(f64, String)>>>,
    /// The trace at the first complaint.
    first_trace: Mutex<Vec<String>>,
    begun: Instant,
}

impl<'a> World<'a> {
    pub(crate) fn new(options: &'a Options) -> Self {
        let user = |prefix: &str, number: usize| User::new(format!("{prefix}{number}"));
        Self {
            options,
            users: (0..options.users)
                .map(|number| Mutex::new(user("user", number)))
                .collect(),
            targets: (0..TARGETS).map(|number| user("target", number)).collect(),
            mirrors: (0..TARGETS).map(|number| user("mirror", number)).collect(),
            retired: Mutex::default(),
            strangers: Mutex::default(),
            totals: Mutex::default(),
            tally: Mutex::default(),
            detectors: Mutex::default(),
            lives: Mutex::default(),
            ending: Mutex::default(),
            damaging: Mutex::default(),
            supervisor: Mutex::default(),
            quiet: RwLock::default(),
            rounds: RwLock::default(),
            comparing: Mutex::default(),
            next_comparison: Mutex::new(NextComparison {
                lives: 2,
                errors: comparison_period(options.errors),
            }),
            sealing: RwLock::default(),
            count: Counters::default(),
            complaints: Mutex::default(),
            over: AtomicBool::new(false),
            handles: (0..options.connections).map(|_| Mutex::default()).collect(),
            incidents: Mutex::default(),
            failures: Mutex::default(),
            latest: Mutex::new("none"),
            trace: Mutex::default(),
            first_trace: Mutex::default(),
            begun: Instant::now(),
        }
    }

    pub(crate) fn progress(&self) -> Progress {
        Progress {
            injected: self.count.injected.load(SeqCst),
            total: self.options.errors,
            lost: self.count.lost.load(SeqCst),
            harmed: self.count.harmed.load(SeqCst),
            restarts: lock(&self.lives).len().saturating_sub(1) as u64,
            requests: self.count.requests.load(SeqCst),
        }
    }

    pub(crate) fn complain(&self, words: String) {
        let mut complaints = lock(&self.complaints);
        if complaints.is_empty() {
            // It is overwritten by the end of the run.
            *lock(&self.first_trace) = self.traced();
        }
        if complaints.len() < MOST_COMPLAINTS {
            let at = self.begun.elapsed().as_secs_f64();
            let words: String = words.chars().take(600).collect();
            let words = format!("{at:.2} s: {words}");
            // The report comes only at the end of a long run.
            eprintln!("campaign: {words}");
            complaints.push(words);
        }
    }

    /// Records a request and its answer in the trace.
    pub(crate) fn trace(&self, connection: usize, line: &str, answer: &[u8]) {
        let answer = String::from_utf8_lossy(&answer[..answer.len().min(100)]).into_owned();
        let line: String = line.chars().take(100).collect();
        let at = self.begun.elapsed().as_secs_f64();
        let mut trace = lock(&self.trace);
        let trace = trace.entry(connection).or_default();
        if trace.len() == TRACE {
            trace.pop_front();
        }
        trace.push_back((at, format!("{at:.3} [{connection}] {line:?} -> {answer:?}")));
    }

    /// The last requests before the first complaint and their answers.
    pub(crate) fn first_traced(&self) -> Vec<String> {
        lock(&self.first_trace).clone()
    }

    /// The last requests and their answers.
    pub(crate) fn traced(&self) -> Vec<String> {
        let trace = lock(&self.trace);
        let mut lines: Vec<&(f64, String)> = trace.values().flatten().collect();
        lines.sort_by(|one, other| one.0.total_cmp(&other.0));
        lines.into_iter().map(|(_, line)| line.clone()).collect()
    }

    /// Runs an error's request and counts it as in flight.
    pub(crate) fn in_flight<T>(&self, request: impl FnOnce() -> T) -> T {
        let flying = self.count.errors_in_flight.fetch_add(1, SeqCst) + 1;
        self.count.most_errors_in_flight.fetch_max(flying, SeqCst);
        let answer = request();
        self.count.errors_in_flight.fetch_sub(1, SeqCst);
        answer
    }

    /// Records the error that is being made as the suspect if others are harmed.
    pub(crate) fn blame(&self, kind: &Kind) {
        *lock(&self.latest) = kind.name;
    }

    /// Counts an error and its outcome. Harm to others and crashes only count in the sums of the run: their cause is not
    /// certain.
    pub(crate) fn made(&self, kind: &'static Kind, class: Class, detector: Option<&str>) {
        self.count.injected.fetch_add(1, SeqCst);
        *lock(&self.tally)
            .entry(kind.name)
            .or_default()
            .entry(class)
            .or_default() += 1;
        let sum = match class {
            Class::RequestLost => Some(&self.count.lost),
            Class::OthersHarmed => Some(&self.count.harmed),
            Class::Hang => Some(&self.count.hangs),
            _ => None,
        };
        if let Some(sum) = sum {
            sum.fetch_add(1, SeqCst);
        }
        if let Some(detector) = detector {
            *lock(&self.detectors)
                .entry(kind.name)
                .or_default()
                .entry(detector.to_owned())
                .or_default() += 1;
        }
    }

    /// Counts harm to a user without an error.
    pub(crate) fn harm(&self, words: String) {
        let kind = *lock(&self.latest);
        self.complain(format!("others harmed (latest error: {kind}): {words}"));
        if self.count.harmed.fetch_add(1, SeqCst) >= MOST_HARM {
            self.over.store(true, SeqCst);
        }
    }

    /// Counts an acknowledged commit that the death of a process or a guest has lost.
    pub(crate) fn commit_lost(&self, words: String) {
        self.complain(format!("commit lost: {words}"));
        if self.count.commits_lost.fetch_add(1, SeqCst) >= MOST_HARM {
            self.over.store(true, SeqCst);
        }
    }

    /// Counts a request without an answer, and ends the run.
    pub(crate) fn hang(&self, words: String) {
        let kind = *lock(&self.latest);
        self.complain(format!("hang (latest error: {kind}): {words}"));
        self.count.hangs.fetch_add(1, SeqCst);
        self.over.store(true, SeqCst);
    }

    /// The number of the server's life with these statistics.
    pub(crate) fn life(&self, stats: &Stats) -> usize {
        let mut lives = lock(&self.lives);
        let known = lives
            .iter()
            .position(|life| life.pid == stats.pid && life.boot == stats.boot);
        known.unwrap_or_else(|| {
            lives.push(Life::new(stats.boot.clone(), stats.pid));
            lives.len() - 1
        })
    }

    /// Records a connection to this life of the server, and shuts down those to earlier lives: a guest that was rebooted
    /// does not close them.
    pub(crate) fn connected(&self, connection: usize, life: usize, handle: Option<TcpStream>) {
        *lock(&self.handles[connection]) = handle.map(|handle| (life, handle));
        for old in &self.handles {
            let mut old = lock(old);
            if let Some((_, handle)) = old.take_if(|(of, _)| *of < life) {
                // It may be closed already.
                let _ = handle.shutdown(Shutdown::Both);
            }
        }
    }

    /// Reads or changes the record of a life.
    pub(crate) fn with_life<T>(&self, number: usize, change: impl FnOnce(&mut Life) -> T) -> T {
        change(&mut lock(&self.lives)[number])
    }

    /// Whether a life may misbehave.
    pub(crate) fn is_damaged(&self, number: usize) -> bool {
        self.with_life(number, |life| {
            life.damaged || life.ending.is_some_and(|kind| kind.fate == Fate::Untagged)
        })
    }

    /// Compares a text with the expected one.
    pub(crate) fn same(&self, expected: &str, found: &[u8]) -> bool {
        self.count
            .bytes_compared
            .fetch_add(expected.len() as u64, SeqCst);
        expected.as_bytes() == found
    }

    pub(crate) fn add(&self, change: DirectoryChange) {
        lock(&self.totals).known += change;
    }

    /// Counts a request that may have changed the directory.
    pub(crate) fn add_maybe(&self, command: &Command) {
        lock(&self.totals).maybe += match command {
            Command::Directory => DirectoryChange {
                changes: 0,
                listings: 1,
            },
            _ => DirectoryChange {
                changes: 1,
                listings: 0,
            },
        };
    }

    /// Whether the directory should be compared.
    pub(crate) fn is_comparison_due(&self) -> bool {
        let lives = lock(&self.lives).len();
        let next = *lock(&self.next_comparison);
        lives >= next.lives || self.count.injected.load(SeqCst) >= next.errors
    }

    /// Compares an answer to `DIRECTORY`, which came while no other request was in flight, with the models. Its counts are
    /// certain from then on.
    pub(crate) fn compare_directory(&self, line: &[u8], when: &str) {
        *lock(&self.next_comparison) = NextComparison {
            lives: lock(&self.lives).len() + 1,
            errors: self.count.injected.load(SeqCst) + comparison_period(self.options.errors),
        };
        let found = match Directory::parse(line) {
            Ok(found) => found,
            Err(error) => return self.harm(format!("the directory {when}: {error}")),
        };
        let unchanged = self.targets.iter().chain(&self.mirrors);
        let entries: Vec<String> = self
            .users
            .iter()
            .map(|user| lock(user).entry())
            .chain(unchanged.map(User::entry))
            .collect();
        let retired = lock(&self.retired);
        let mut others: Vec<String> = retired.iter().map(|user| user.name.clone()).collect();
        drop(retired);
        others.extend(lock(&self.strangers).iter().cloned());
        let mut totals = lock(&self.totals);
        // This one.
        totals.known.listings += 1;
        let trouble = found.compare(&entries, &others, totals.known, totals.maybe);
        totals.settle(found.counts());
        drop(totals);
        self.count.directories_compared.fetch_add(1, SeqCst);
        for words in trouble {
            self.harm(format!("the directory {when}: {words}"));
        }
    }

    /// Each life that ended, and why; `console` is the guest's, if there is a guest.
    pub(crate) fn ended(&self, console: Option<&Console>) -> Vec<Ended> {
        let lives = lock(&self.lives);
        let pairs = lives.windows(2).map(|pair| (&pair[0], &pair[1]));
        pairs
            .map(|(life, next)| {
                let same_boot = life.boot == next.boot;
                let evidence = Evidence {
                    same_boot,
                    supervised: console.is_some(),
                    end: console.and_then(|console| console.end(&life.boot, life.pid)),
                };
                Ended {
                    cause: cause(life, evidence),
                    suspect: life.suspects.first().copied(),
                    same_boot,
                    outage: life
                        .broken
                        .map(|broken| next.begun.saturating_duration_since(broken)),
                }
            })
            .collect()
    }

    /// Planned panics of the guest.
    pub(crate) fn panics_planned(&self) -> u64 {
        let lives = lock(&self.lives);
        let panics = |life: &&Life| life.ending.is_some_and(|kind| kind.fate == Fate::Panics);
        lives.iter().filter(panics).count() as u64
    }

    /// Whether this process of this boot has answered a client.
    pub(crate) fn has_lived(&self, boot: &str, pid: u32) -> bool {
        let lives = lock(&self.lives);
        lives
            .iter()
            .any(|life| life.pid == pid && life.boot == boot)
    }
}

/// The end of a process of the server.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) cause: Cause,
    /// An error whose request had no answer, if any.
    pub(crate) suspect: Option<&'static str>,
    /// Whether the guest went on.
    pub(crate) same_boot: bool,
    /// Time without a server, if a client noticed.
    pub(crate) outage: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_change_is_seen_after_an_uncertain_one() {
        let change = |changes| DirectoryChange {
            changes,
            listings: 0,
        };
        let mut totals = Totals {
            known: change(5),
            maybe: change(1),
        };
        // The uncertain one was made. Then one more is made, and lost.
        totals.settle(change(6));
        totals.known += change(1);
        let found = Directory::parse(b"OK users=0 changes=6 listings=0").unwrap();
        let trouble = found.compare(&[], &[], totals.known, totals.maybe);
        assert_eq!(trouble.len(), 1, "{trouble:?}");
    }
}
