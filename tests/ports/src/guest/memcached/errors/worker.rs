//! A connection with keys of its own, so that it knows every answer.

use std::time::Instant;

use anyhow::Result;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use vmsrs_campaign::arm::{MARK, Point, Strike};
use vmsrs_campaign::kind::{Fate, Kind};

use crate::guest::errors::{self, COPIES, INJECTOR_LIBRARY, LEFT_OUT, Worker as _};
use crate::guest::memcached::{client::Client, start};
use crate::guest::server::Server;
use crate::plan::Errors;

/// Keys of each connection.
const KEYS: usize = 48;
/// Longest value.
const VALUE_MAX: usize = 3000;

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
pub(super) struct Worker {
    number: u64,
    client: Client,
    random: SmallRng,
    values: Vec<Option<Vec<u8>>>,
    found: Errors,
}

impl Worker {
    fn name(&self, key: usize) -> String {
        format!("user-{}-{key}", self.number)
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

    /// Whether a key has what the model says.
    fn reads(&mut self, key: usize) -> Result<Option<Vec<u8>>> {
        let name = self.name(key);
        self.client.send_get(&name)?;
        self.client.expect_value()
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
}

impl errors::Worker for Worker {
    const CONNECTIONS: u64 = 6;
    const REASONS: [&'static str; LEFT_OUT.len()] = [
        "memcached answers an allocation that fails by evicting another item, as a cache may",
        "an allocation in a domain that the request does not hold fails, and memcached evicts another item",
        "a wrong pointer into the request's own shard may be another item there, which the request may write to",
    ];

    fn start() -> Result<Server> {
        start(
            "memcached-attacked",
            &["-t", "4", "-m", "128"],
            &[
                ("LD_PRELOAD", INJECTOR_LIBRARY),
                ("INJECT_COPIES", COPIES),
                ("MEMCACHED_SHARDS", "16"),
            ],
        )
    }

    fn found(&mut self) -> &mut Errors {
        &mut self.found
    }

    fn random(&mut self) -> &mut SmallRng {
        &mut self.random
    }

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

    fn again(&mut self) -> Result<()> {
        self.client = Client::connect()?;
        (0..KEYS).try_for_each(|key| self.reset(key))
    }

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

    fn hit(&mut self, kind: &'static Kind) -> Result<()> {
        let Some(arm) = self.arm(kind) else {
            return Ok(());
        };
        let mut step = self.step();
        // Gets neither allocate nor free.
        while matches!(arm.point, Point::Alloc | Point::Free) && step.value.is_some() {
            step = self.step();
        }
        let mut bytes = format!("{arm}\n").into_bytes();
        bytes.extend_from_slice(&step.bytes);
        let start = Instant::now();
        self.client.send(&bytes)?;
        let (strike, answer) = self.answer(&step);
        let time = start.elapsed().as_millis() as u64;
        *self
            .found
            .milliseconds
            .entry(kind.name.to_owned())
            .or_default() += time;
        let what = format!("{} ({arm}) in {}", kind.name, step.answer);
        if let Answer::Failed(line) = &answer
            && line.contains("deadline")
            && !kind.is_endless()
        {
            self.harmed(format!("{what}: it hung"));
        }
        // A request that fails before its value has arrived closes its connection.
        if matches!(
            answer,
            Answer::Failed(_) | Answer::Closed | Answer::Wrong(_)
        ) {
            self.client = Client::connect()?;
        }
        let reported = strike.as_ref().is_some_and(|strike| strike.fired);
        let fired = reported || matches!(answer, Answer::Failed(_) | Answer::Closed);
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
        self.found.unreported += u64::from(!reported);
        *self.found.kinds.entry(kind.name.to_owned()).or_default() += 1;
        let mine = match self.reads(step.key) {
            Ok(mine) => mine,
            // The end of its line is stored with the value, and is wrong as well.
            Err(_) if kind.fate == Fate::OwnDamage => {
                self.found.own_wrong += 1;
                self.client = Client::connect()?;
                return self.reset(step.key);
            }
            Err(error) => return Err(error),
        };
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

    fn check_all(&mut self, what: &str) -> Result<()> {
        (0..KEYS).try_for_each(|key| self.check(key, what))
    }
}
