//! What the connections share: the model, the server's lives, the tally.

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

/// Trouble that is told in words; the rest is counted only.
const MOST_COMPLAINTS: usize = 40;
/// Harm after which the run is given up.
const MOST_HARM: u64 = 100;
/// Requests of each connection that the trace goes back: of one that hangs, too.
const TRACE: usize = 100;
/// Users of each sort that nobody changes; the injector knows the number too.
const VAULTS: usize = 4;

/// The run is to end: trouble has been noted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Over;

/// A user that an error of his own has left with wrong data: nobody uses him any more.
#[derive(Debug)]
pub(crate) struct Retired {
    pub(crate) name: String,
    /// His state, if it could be read.
    pub(crate) dump: Option<Vec<u8>>,
}

/// What the directory counts, as far as it is known.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) known: DirectoryChange,
    /// Changes that were made or not.
    pub(crate) maybe: DirectoryChange,
}

impl Totals {
    /// What a listing has found at a time when no request was under way: from here on the counts are
    /// known for certain.
    fn settle(&mut self, found: DirectoryChange) {
        *self = Self {
            known: found,
            maybe: DirectoryChange::default(),
        };
    }
}

/// When the directory is to be compared: with so many lives of the server, or so many errors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NextComparison {
    lives: usize,
    errors: u64,
}

/// Errors between two comparisons of the directory in one life of the server: a few in each run, as
/// all connections have to wait for each other then.
fn comparison_period(errors: u64) -> u64 {
    (errors / 8).max(25)
}

/// Numbers of the run.
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

/// What the connections share.
pub(crate) struct World<'a> {
    pub(crate) options: &'a Options,
    pub(crate) users: Vec<Mutex<User>>,
    /// Users whom nobody changes: stray writes aim at them.
    pub(crate) vaults: Vec<User>,
    /// Users whom nobody changes, with mirrors: the host's memory behind their frames goes wrong.
    pub(crate) mirrors: Vec<User>,
    /// Held while a frame of theirs is wrong.
    pub(crate) damaging: Mutex<()>,
    pub(crate) retired: Mutex<Vec<Retired>>,
    /// Users that errors were made in the making of.
    pub(crate) strangers: Mutex<Vec<String>>,
    pub(crate) totals: Mutex<Totals>,
    /// What became of the errors that were made, by kind.
    pub(crate) tally: Mutex<BTreeMap<&'static str, BTreeMap<Class, u64>>>,
    pub(crate) detectors: Mutex<BTreeMap<&'static str, BTreeMap<String, u64>>>,
    pub(crate) lives: Mutex<Vec<Life>>,
    /// Held while an error is under way that ends the server.
    pub(crate) ending: Mutex<()>,
    /// Held while the supervisor is asked to end a process.
    pub(crate) supervisor: Mutex<()>,
    /// Held shared while any other error is under way and is judged, and alone while one is that may
    /// damage memory outside of domains: whatever ends the process then, it is this one.
    pub(crate) quiet: RwLock<()>,
    /// Held shared by each connection while it makes requests, and alone while the directory is
    /// compared: then no request is under way.
    pub(crate) rounds: RwLock<()>,
    /// Held by the one connection that compares it.
    pub(crate) comparing: Mutex<()>,
    /// When the directory is to be compared again.
    pub(crate) next_comparison: Mutex<NextComparison>,
    /// Whether answers wait for the seal; read by every request while it is under way.
    pub(crate) sealing: RwLock<bool>,
    pub(crate) count: Counters,
    pub(crate) complaints: Mutex<Vec<String>>,
    pub(crate) over: AtomicBool,
    /// For each connection, the life of the server it was made in, and a handle to it.
    handles: Vec<Mutex<Option<(usize, TcpStream)>>>,
    /// Incidents of requests that nobody made an error in.
    pub(crate) incidents: Mutex<Vec<u64>>,
    /// What clients were told of failures.
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
            vaults: (0..VAULTS).map(|number| user("vault", number)).collect(),
            mirrors: (0..VAULTS).map(|number| user("mirror", number)).collect(),
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
            // What led to it is forgotten in the end.
            *lock(&self.first_trace) = self.traced();
        }
        if complaints.len() < MOST_COMPLAINTS {
            let at = self.begun.elapsed().as_secs_f64();
            let words: String = words.chars().take(600).collect();
            let words = format!("{at:.2} s: {words}");
            // For whoever watches a long run; the report comes at its end.
            eprintln!("campaign: {words}");
            complaints.push(words);
        }
    }

    /// Notes a request and its answer.
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

    /// Runs an error's request, which counts as under way meanwhile.
    pub(crate) fn in_flight<T>(&self, request: impl FnOnce() -> T) -> T {
        let flying = self.count.errors_in_flight.fetch_add(1, SeqCst) + 1;
        self.count.most_errors_in_flight.fetch_max(flying, SeqCst);
        let answer = request();
        self.count.errors_in_flight.fetch_sub(1, SeqCst);
        answer
    }

    /// Notes the error that is being made, to be blamed for what happens to others.
    pub(crate) fn blame(&self, kind: &Kind) {
        *lock(&self.latest) = kind.name;
    }

    /// Counts an error that was made and what became of it. What it did to others, or to the
    /// process, counts in the sums of the run: who is to blame for that is not known for certain.
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

    /// Somebody who made no error was hit.
    pub(crate) fn harm(&self, words: String) {
        let kind = *lock(&self.latest);
        self.complain(format!("others harmed (latest error: {kind}): {words}"));
        if self.count.harmed.fetch_add(1, SeqCst) >= MOST_HARM {
            self.over.store(true, SeqCst);
        }
    }

    /// A commit that was answered is not there after the death of a process or a guest.
    pub(crate) fn commit_lost(&self, words: String) {
        self.complain(format!("commit lost: {words}"));
        if self.count.commits_lost.fetch_add(1, SeqCst) >= MOST_HARM {
            self.over.store(true, SeqCst);
        }
    }

    /// A request has no answer though it had all the time.
    pub(crate) fn hang(&self, words: String) {
        let kind = *lock(&self.latest);
        self.complain(format!("hang (latest error: {kind}): {words}"));
        self.count.hangs.fetch_add(1, SeqCst);
        self.over.store(true, SeqCst);
    }

    /// The server's life that answers so: its number.
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

    /// Notes a connection to the server of this life, and shuts those to earlier ones down: a guest
    /// that was booted anew does not even close them.
    pub(crate) fn connected(&self, connection: usize, life: usize, handle: Option<TcpStream>) {
        *lock(&self.handles[connection]) = handle.map(|handle| (life, handle));
        for old in &self.handles {
            let mut old = lock(old);
            if let Some((_, handle)) = old.take_if(|(of, _)| *of < life) {
                // One that is closed already needs no end.
                let _ = handle.shutdown(Shutdown::Both);
            }
        }
    }

    /// Changes what is known of a life.
    pub(crate) fn with_life<T>(&self, number: usize, change: impl FnOnce(&mut Life) -> T) -> T {
        change(&mut lock(&self.lives)[number])
    }

    /// Whether a life need not work as it should any more.
    pub(crate) fn is_damaged(&self, number: usize) -> bool {
        self.with_life(number, |life| {
            life.damaged || life.ending.is_some_and(|kind| kind.fate == Fate::Untagged)
        })
    }

    /// Holds a text against what it must be.
    pub(crate) fn same(&self, expected: &str, found: &[u8]) -> bool {
        self.count
            .bytes_compared
            .fetch_add(expected.len() as u64, SeqCst);
        expected.as_bytes() == found
    }

    pub(crate) fn add(&self, change: DirectoryChange) {
        lock(&self.totals).known += change;
    }

    /// A request that perhaps changed the directory's counts.
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

    /// Whether the directory is to be compared.
    pub(crate) fn is_comparison_due(&self) -> bool {
        let lives = lock(&self.lives).len();
        let next = *lock(&self.next_comparison);
        lives >= next.lives || self.count.injected.load(SeqCst) >= next.errors
    }

    /// Holds an answer to `DIRECTORY`, which came while no other request was under way, against what all
    /// users have and have done. What may have been done or not is known from then on.
    pub(crate) fn compare_directory(&self, line: &[u8], when: &str) {
        *lock(&self.next_comparison) = NextComparison {
            lives: lock(&self.lives).len() + 1,
            errors: self.count.injected.load(SeqCst) + comparison_period(self.options.errors),
        };
        let found = match Directory::parse(line) {
            Ok(found) => found,
            Err(error) => return self.harm(format!("the directory {when}: {error}")),
        };
        let unchanged = self.vaults.iter().chain(&self.mirrors);
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

    /// Each life that ended and the next one, with why it ended; `console` is what the guest's
    /// console tells, where there is one.
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

    /// Panics of the guest that errors have asked for.
    pub(crate) fn panics_planned(&self) -> u64 {
        let lives = lock(&self.lives);
        let panics = |life: &&Life| life.ending.is_some_and(|kind| kind.fate == Fate::Panics);
        lives.iter().filter(panics).count() as u64
    }

    /// Whether a process has answered as this one of this boot.
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
    /// An error whose request had no answer.
    pub(crate) suspect: Option<&'static str>,
    /// Whether the guest went on.
    pub(crate) same_boot: bool,
    /// Time without a server, if a client has noticed.
    pub(crate) outage: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_is_lost_is_seen_though_an_earlier_one_was_uncertain() {
        let change = |changes| DirectoryChange {
            changes,
            listings: 0,
        };
        let mut totals = Totals {
            known: change(5),
            maybe: change(1),
        };
        // The uncertain one was made. One more is made then, and is lost.
        totals.settle(change(6));
        totals.known += change(1);
        let found = Directory::parse(b"OK users=0 changes=6 listings=0").unwrap();
        let trouble = found.compare(&[], &[], totals.known, totals.maybe);
        assert_eq!(trouble.len(), 1, "{trouble:?}");
    }
}
