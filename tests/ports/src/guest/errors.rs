//! Errors in requests, and a model of what the server has.
//!
//! Each connection has keys of its own, so it knows every answer. One in a few of its commands is hit by an error; all others
//! must be answered right, and what other keys have must stay.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use vmsrs_campaign::arm::{Arm, MARK, Point, Strike};
use vmsrs_campaign::kind::{self, Fate, Kind, Origin};

use super::client::Client;
use super::server::Server;
use super::tell;
use crate::plan::{Errors, Finding};
use crate::report::INJECTOR;

/// The build with bugs, which sends and receives by the calls that the injector sees.
const PROGRAM: &str = "memcached-attacked";
/// The injector, found by the loader.
const INJECTOR_LIBRARY: &str = "libinject.so";
/// Connections, each with a thread of its own here.
const CONNECTIONS: u64 = 6;
/// Keys of each.
const KEYS: usize = 48;
/// Longest value.
const VALUE_MAX: usize = 3000;
/// Commands without an error for each one with an error, at least.
const ORDINARY: u64 = 3;
/// Errors between two lines that tell how far it is.
const PROGRESS: u64 = 50;
/// Complaints that are kept.
const COMPLAINTS: usize = 24;

/// Places that requests of this server pass: it has no defers, and its requests have one thread.
const POINTS: [Point; 8] = [
    Point::Start,
    Point::End,
    Point::Root,
    Point::Alloc,
    Point::Free,
    Point::Copy,
    Point::Library,
    Point::Moment,
];

/// Kinds that ask for something that only the ledger has: handlers of signals.
const OF_THE_LEDGER: [&str; 2] = ["handler", "handler-jump"];

/// Whether the kind can be made here.
fn is_made(kind: &Kind) -> bool {
    let Origin::Injected(errors) = kind.origin else {
        return false;
    };
    kind.ends_nothing()
        && !kind.needs_company()
        && kind.points.iter().any(|point| POINTS.contains(point))
        && !errors.iter().any(|error| OF_THE_LEDGER.contains(error))
}

/// A command, and what it may do to its key.
struct Step {
    key: usize,
    /// Without the injector's line.
    bytes: Vec<u8>,
    /// The right answer.
    answer: String,
    /// The value that is part of it.
    value: Option<Vec<u8>>,
    /// What the key has afterwards.
    after: Option<Vec<u8>>,
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// As it should be.
    Right,
    /// The request failed.
    Failed(String),
    /// Another one.
    Wrong(String),
    /// None: the connection is closed.
    Closed,
}

/// A connection with its keys.
struct Worker {
    number: u64,
    client: Client,
    random: SmallRng,
    values: Vec<Option<Vec<u8>>>,
    found: Errors,
}

impl Worker {
    fn new(number: u64, seed: u64) -> Result<Self> {
        let mut worker = Self {
            number,
            client: Client::connect()?,
            random: SmallRng::seed_from_u64(seed << 8 | number),
            values: vec![None; KEYS],
            found: Errors::default(),
        };
        for key in 0..KEYS {
            worker.reset(key)?;
        }
        Ok(worker)
    }

    fn name(&self, key: usize) -> String {
        format!("user-{}-{key}", self.number)
    }

    fn complain(&mut self, words: String) {
        if self.found.complaints.len() < COMPLAINTS {
            let mut words = words;
            words.truncate(400);
            self.found.complaints.push(words);
        }
    }

    fn harmed(&mut self, words: String) {
        self.found.others_harmed += 1;
        self.complain(words);
    }

    /// Connects again, and gives all keys new values.
    fn again(&mut self) -> Result<()> {
        self.client = Client::connect()?;
        (0..KEYS).try_for_each(|key| self.reset(key))
    }

    fn random_value(&mut self) -> Vec<u8> {
        let length = self.random.random_range(1..VALUE_MAX);
        let byte = self.random.random_range(b'a'..=b'z');
        vec![byte; length]
    }

    /// Gives a key a value, whatever it had.
    fn reset(&mut self, key: usize) -> Result<()> {
        let value = self.random_value();
        let name = self.name(key);
        self.client.send_set(&name, &value)?;
        self.client.expect("STORED")?;
        self.values[key] = Some(value);
        Ok(())
    }

    /// Draws a command.
    fn step(&mut self) -> Step {
        let key = self.random.random_range(0..KEYS);
        let name = self.name(key);
        let before = self.values[key].clone();
        let text = |verb: &str, value: &[u8]| {
            let mut bytes = format!("{verb} {name} 0 0 {}\r\n", value.len()).into_bytes();
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
            bytes
        };
        let plain = |bytes: Vec<u8>, answer: &str, after: Option<Vec<u8>>| Step {
            key,
            bytes,
            answer: answer.to_owned(),
            value: None,
            after,
        };
        match self.random.random_range(0..10) {
            0..4 => match before {
                None => plain(format!("get {name}\r\n").into_bytes(), "END", None),
                Some(value) => Step {
                    key,
                    bytes: format!("get {name}\r\n").into_bytes(),
                    answer: format!("VALUE {name} 0 {}", value.len()),
                    value: Some(value.clone()),
                    after: Some(value),
                },
            },
            4..8 => {
                // Half of them keep the size, and overwrite the item.
                let mut value = self.random_value();
                if let Some(before) = &before
                    && self.random.random_range(0..2) == 0
                {
                    value = vec![value[0]; before.len()];
                }
                plain(text("set", &value), "STORED", Some(value))
            }
            8 => match before {
                Some(before) if before.len() < VALUE_MAX => {
                    let value = self.random_value();
                    let mut after = before;
                    after.extend_from_slice(&value);
                    plain(text("append", &value), "STORED", Some(after))
                }
                Some(_) => plain(format!("delete {name}\r\n").into_bytes(), "DELETED", None),
                None => {
                    let value = self.random_value();
                    plain(text("append", &value), "NOT_STORED", None)
                }
            },
            _ => match before {
                Some(_) => plain(format!("delete {name}\r\n").into_bytes(), "DELETED", None),
                None => {
                    let value = self.random_value();
                    plain(text("add", &value), "STORED", Some(value))
                }
            },
        }
    }

    /// Reads the answer, and the injector's report before it.
    fn answer(&mut self, step: &Step) -> (Option<Strike>, Answer) {
        let mut strike = None;
        loop {
            let line = match self.client.line() {
                Ok(line) if !line.is_empty() => line,
                _ => return (strike, Answer::Closed),
            };
            if line.as_bytes().first() == Some(&MARK) {
                strike = Strike::parse(line.as_bytes());
                continue;
            }
            if line.starts_with("SERVER_ERROR") {
                return (strike, Answer::Failed(line));
            }
            if let Some(rest) = line.strip_prefix("VALUE ") {
                let length = rest.rsplit(' ').next().and_then(|text| text.parse().ok());
                let Some(Ok(value)) = length.map(|length| self.client.value(length)) else {
                    return (strike, Answer::Closed);
                };
                let end = self.client.line().unwrap_or_default();
                let right =
                    line == step.answer && step.value.as_ref() == Some(&value) && end == "END";
                return match right {
                    true => (strike, Answer::Right),
                    false => {
                        let bytes = value.len();
                        (
                            strike,
                            Answer::Wrong(format!("{line}, {bytes} bytes, {end}")),
                        )
                    }
                };
            }
            return match line == step.answer {
                true => (strike, Answer::Right),
                false => (strike, Answer::Wrong(line)),
            };
        }
    }

    /// A command without an error: its answer must be right.
    fn ordinary(&mut self) -> Result<()> {
        let step = self.step();
        self.client.send(&step.bytes)?;
        let (_, answer) = self.answer(&step);
        if answer == Answer::Right {
            self.values[step.key] = step.after;
            self.found.ordinary += 1;
            return Ok(());
        }
        let command = String::from_utf8_lossy(&step.bytes);
        let command = command.lines().next().unwrap_or_default().to_owned();
        self.harmed(format!("{command}: {answer:?} instead of {}", step.answer));
        self.client = Client::connect()?;
        self.reset(step.key)
    }

    /// Whether a key has what the model says.
    fn reads(&mut self, key: usize) -> Result<Option<Vec<u8>>> {
        let name = self.name(key);
        self.client.send_get(&name)?;
        self.client.expect_value()
    }

    /// A command with an error.
    fn hit(&mut self, kind: &'static Kind) -> Result<()> {
        let Origin::Injected(errors) = kind.origin else {
            return Ok(());
        };
        let points: Vec<Point> = kind
            .points
            .iter()
            .copied()
            .filter(|point| POINTS.contains(point))
            .collect();
        let point = points[self.random.random_range(0..points.len())];
        let arm = Arm {
            point,
            count: match point {
                Point::Moment => self.random.random_range(1..20_000),
                Point::Copy | Point::Library => self.random.random_range(1..6),
                _ => self.random.random_range(1..3),
            },
            error: errors[self.random.random_range(0..errors.len())],
            parameter: self.random.random(),
            deadline_ms: kind.deadline_ms,
            seal: false,
        };
        let step = self.step();
        let mut bytes = format!("{arm}\n").into_bytes();
        bytes.extend_from_slice(&step.bytes);
        self.client.send(&bytes)?;
        let (strike, answer) = self.answer(&step);
        let what = format!("{} ({arm}) in {}", kind.name, step.answer);
        // A request that fails before its value has arrived closes its connection.
        if matches!(
            answer,
            Answer::Failed(_) | Answer::Closed | Answer::Wrong(_)
        ) {
            self.client = Client::connect()?;
        }
        let fired = strike.as_ref().is_some_and(|strike| strike.fired)
            || matches!(answer, Answer::Failed(_) | Answer::Closed);
        if let Some(left) = strike.and_then(|strike| strike.left) {
            self.harmed(format!("{what}: left behind: {left}"));
        }
        if !fired {
            self.found.not_reached += 1;
            if answer == Answer::Right {
                self.values[step.key] = step.after;
            } else {
                self.harmed(format!("{what}: not made, but {answer:?}"));
                self.reset(step.key)?;
            }
            return Ok(());
        }
        self.found.injected += 1;
        *self.found.kinds.entry(kind.name.to_owned()).or_default() += 1;
        let mine = self.reads(step.key)?;
        let (expected, counts) = match answer {
            Answer::Right => (step.after, &mut self.found.no_effect),
            _ => (self.values[step.key].clone(), &mut self.found.request_lost),
        };
        let right =
            answer != Answer::Closed && !matches!(answer, Answer::Wrong(_)) && mine == expected;
        if right {
            *counts += 1;
            self.values[step.key] = expected;
        } else {
            self.found.own_wrong += 1;
            if kind.fate != Fate::OwnDamage {
                let length = mine.map(|value| value.len());
                let wanted = expected.map(|value| value.len());
                self.harmed(format!(
                    "{what}: {answer:?}, the key has {length:?} bytes instead of {wanted:?}"
                ));
            }
            self.reset(step.key)?;
        }
        // Others: two of this connection's keys.
        for _ in 0..2 {
            let key = self.random.random_range(0..KEYS);
            self.check(key, &what)?;
        }
        Ok(())
    }

    fn check(&mut self, key: usize, what: &str) -> Result<()> {
        let has = self.reads(key)?;
        if has == self.values[key] {
            self.found.ordinary += 1;
            return Ok(());
        }
        let (has, wanted) = (
            has.map(|value| value.len()),
            self.values[key].as_ref().map(Vec::len),
        );
        let name = self.name(key);
        self.harmed(format!(
            "{name} has {has:?} bytes instead of {wanted:?} after {what}"
        ));
        self.reset(key)
    }

    /// Reads all keys.
    fn check_all(&mut self, what: &str) -> Result<()> {
        (0..KEYS).try_for_each(|key| self.check(key, what))
    }
}

/// Adds what a connection has found.
fn add(sum: &mut Errors, one: Errors) {
    sum.injected += one.injected;
    sum.request_lost += one.request_lost;
    sum.no_effect += one.no_effect;
    sum.own_wrong += one.own_wrong;
    sum.not_reached += one.not_reached;
    sum.others_harmed += one.others_harmed;
    sum.ordinary += one.ordinary;
    for (kind, count) in one.kinds {
        *sum.kinds.entry(kind).or_default() += count;
    }
    for complaint in one.complaints {
        if sum.complaints.len() < COMPLAINTS {
            sum.complaints.push(complaint);
        }
    }
}

fn start() -> Result<Server> {
    Server::start(
        PROGRAM,
        &["-t", "4", "-m", "128"],
        &[("LD_PRELOAD", INJECTOR_LIBRARY), ("MEMCACHED_SHARDS", "16")],
    )
}

/// Notes how the server ended, if it did.
fn note_end(server: &mut Server, found: &mut Errors) -> Result<bool> {
    let Some(status) = server.ended()? else {
        return Ok(false);
    };
    found.restarts += 1;
    found
        .complaints
        .push(format!("the server ended with {status}"));
    Ok(true)
}

/// Makes errors by the campaign's injector.
pub(super) fn inject(seed: u64, errors: u64, only: &str) -> Result<()> {
    let kinds = kind::common().filter(|kind| is_made(kind) && kind.name.contains(only));
    let kinds: Vec<&'static Kind> = kinds.collect();
    ensure!(
        !kinds.is_empty(),
        "no kind that can be made here contains {only:?}"
    );
    let mut sum = Errors {
        class: INJECTOR.to_owned(),
        ..Errors::default()
    };
    let mut server = start()?;
    let mut workers = Vec::new();
    for number in 0..CONNECTIONS {
        workers.push(Worker::new(number, seed)?);
    }
    let made = Mutex::new(0u64);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for worker in &mut workers {
            let (kinds, made, stop) = (&kinds, &made, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let before = worker.found.injected;
                    let result = (0..ORDINARY)
                        .try_for_each(|_| worker.ordinary())
                        .and_then(|()| {
                            let kind = kinds[worker.random.random_range(0..kinds.len())];
                            worker.hit(kind).with_context(|| kind.name)
                        });
                    if let Err(error) = result {
                        worker.harmed(format!("{error:#}"));
                        // Without a server there is nothing more to do.
                        if worker.again().is_err() {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                    let mut made = made
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                    *made += worker.found.injected - before;
                    if *made >= errors {
                        stop.store(true, Ordering::Relaxed);
                    }
                    if *made % PROGRESS < worker.found.injected - before {
                        println!("{} errors of {errors}", *made);
                    }
                }
            });
        }
    });
    let ended = note_end(&mut server, &mut sum)?;
    for mut worker in workers {
        if !ended && let Err(error) = worker.check_all("the last error") {
            worker.harmed(format!("{error:#}"));
        }
        add(&mut sum, worker.found);
    }
    if !ended {
        note_end(&mut server, &mut sum)?;
    }
    tell(&Finding::Errors(sum))
}

/// A packet of the binary protocol: code, lengths as they are told, and bytes.
fn packet(code: u8, key_length: u16, extras: u8, body_length: u32, bytes: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x80, code];
    packet.extend_from_slice(&key_length.to_be_bytes());
    packet.extend_from_slice(&[extras, 0, 0, 0]);
    packet.extend_from_slice(&body_length.to_be_bytes());
    packet.extend_from_slice(&[0; 12]);
    packet.extend_from_slice(bytes);
    packet
}

/// How a bug is attacked: bytes to send on a connection of its own.
type Attack = fn(u64) -> Vec<u8>;

/// The classes.
const ATTACKS: [(&str, Attack); 4] = [
    (
        "length underflow in a binary packet (CVE-2011-4971, CVE-2016-8705)",
        |turn| {
            let mut bytes = vec![0; 8];
            bytes.extend_from_slice(b"bug-underflow");
            // The body is told to be shorter than the key and the extras that come with it.
            let mut attack = packet(0x01, 13, 8, 18 - (turn % 8) as u32, &bytes);
            attack.extend_from_slice(&[b'x'; 64]);
            attack
        },
    ),
    (
        "length underflow in a binary append (CVE-2016-8704)",
        |turn| {
            let mut attack = packet(0x0e, 13, 0, 8 - (turn % 8) as u32, b"bug-underflow");
            attack.extend_from_slice(&[b'x'; 64]);
            attack
        },
    ),
    (
        "overflow by append and prepend (CVE-2016-8704, CVE-2016-8706)",
        |turn| {
            let verb = if turn % 2 == 0 { "append" } else { "prepend" };
            let value = "v".repeat(100 + (turn % 7) as usize * 300);
            let length = value.len();
            format!("set bug-value 0 0 {length}\r\n{value}\r\n{verb} bug-value 0 0 {length}\r\n{value}\r\n").into_bytes()
        },
    ),
    ("a lock of an item that is not taken", |turn| {
        let key = format!("bug-lock{turn}");
        format!("touch {key} 100\r\nset {key} 0 0 3\r\nabc\r\ntouch {key} 0\r\nincr {key} 1\r\ndelete {key}\r\n").into_bytes()
    }),
];

/// Attacks bugs that are made again by edits, while others work.
pub(super) fn attack(each: u64) -> Result<()> {
    for (class, attack) in ATTACKS {
        let mut sum = Errors {
            class: class.to_owned(),
            ..Errors::default()
        };
        let mut server = start()?;
        let mut workers = Vec::new();
        for number in 0..CONNECTIONS {
            workers.push(Worker::new(number, 1)?);
        }
        let mut answers: BTreeMap<String, u64> = BTreeMap::new();
        for turn in 0..each {
            let mut attacker = match Client::connect() {
                Ok(client) => client,
                Err(_) => break,
            };
            attacker.send(&attack(turn))?;
            attacker.end_of_sending()?;
            let mut failed = 0;
            // Until the connection is closed.
            while let Ok(line) = attacker.line() {
                if line.is_empty() {
                    break;
                }
                failed += u64::from(line.contains("request failed"));
                if answers.len() < 16 {
                    let words: String = line
                        .chars()
                        .filter(|char| char.is_ascii_graphic() || *char == ' ')
                        .collect();
                    let words = words.split(", incident").next().unwrap_or_default();
                    *answers.entry(words.chars().take(60).collect()).or_default() += 1;
                }
            }
            sum.injected += 1;
            sum.request_lost += u64::from(failed > 0);
            for worker in &mut workers {
                if let Err(error) = (0..ORDINARY).try_for_each(|_| worker.ordinary()) {
                    worker.harmed(format!("{error:#}"));
                }
            }
            if note_end(&mut server, &mut sum)? {
                break;
            }
        }
        for mut worker in workers {
            if sum.restarts == 0
                && let Err(error) = worker.check_all(class)
            {
                worker.harmed(format!("{error:#}"));
            }
            add(&mut sum, worker.found);
        }
        sum.kinds = answers;
        tell(&Finding::Errors(sum))?;
    }
    Ok(())
}
