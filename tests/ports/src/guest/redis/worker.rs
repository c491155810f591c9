//! A connection with keys of its own, so that it knows every answer.

use std::time::Instant;

use anyhow::Result;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use vmsrs_campaign::arm::Point;
use vmsrs_campaign::kind::{Fate, Kind};

use super::client::{Client, Reply, command};
use super::start;
use crate::guest::errors::{self, COPIES, INJECTOR_LIBRARY, LEFT_OUT, Worker as _};
use crate::guest::server::Server;
use crate::plan::Errors;

/// Places of each connection: keys, and as many fields of a hash of its own.
const PLACES: usize = 48;
/// Longest value.
const VALUE_MAX: usize = 3000;
/// Bytes that are asked for after a command with an error: more than its answer has, which may be of two values.
const END_BYTES: usize = 2 * VALUE_MAX + 64;

/// A command, and what it may do to its place.
struct Step {
    place: usize,
    bytes: Vec<u8>,
    /// The right answer.
    answer: Reply,
    /// What the place has afterwards.
    after: Option<Vec<u8>>,
}

/// A connection with its keys.
pub(super) struct Worker {
    number: u64,
    client: Client,
    random: SmallRng,
    values: Vec<Option<Vec<u8>>>,
    found: Errors,
}

fn ok() -> Reply {
    Reply::Status("OK".to_owned())
}

impl Worker {
    /// The hash of the connection, and the field of a place; nothing if the place is a key.
    fn field(&self, place: usize) -> Option<(String, String)> {
        let is_field = place.is_multiple_of(3);
        is_field.then(|| (format!("hash-{}", self.number), format!("field-{place}")))
    }

    fn name(&self, place: usize) -> String {
        format!("user-{}-{place}", self.number)
    }

    fn random_value(&mut self) -> Vec<u8> {
        let length = self.random.random_range(1..VALUE_MAX);
        vec![self.random.random_range(b'a'..=b'z'); length]
    }

    /// What sets a place, and its answer.
    fn setting(&self, place: usize, value: &[u8], is_new: bool) -> (Vec<u8>, Reply) {
        match self.field(place) {
            Some((hash, field)) => (
                command(&[b"HSET", hash.as_bytes(), field.as_bytes(), value]),
                Reply::Number(i64::from(is_new)),
            ),
            None => (command(&[b"SET", self.name(place).as_bytes(), value]), ok()),
        }
    }

    fn reading(&self, place: usize) -> Vec<u8> {
        match self.field(place) {
            Some((hash, field)) => command(&[b"HGET", hash.as_bytes(), field.as_bytes()]),
            None => command(&[b"GET", self.name(place).as_bytes()]),
        }
    }

    /// Gives a place a value, whatever it had.
    fn reset(&mut self, place: usize) -> Result<()> {
        let value = self.random_value();
        let (bytes, _) = self.setting(place, &value, true);
        self.client.send(&bytes)?;
        match self.client.reply()? {
            Reply::Status(_) | Reply::Number(_) => self.values[place] = Some(value),
            other => anyhow::bail!("a value is not taken: {}", other.words()),
        }
        Ok(())
    }

    /// Draws a command.
    fn step(&mut self) -> Step {
        let place = self.random.random_range(0..PLACES);
        let before = self.values[place].clone();
        let name = self.name(place);
        match self.random.random_range(0..10) {
            0..4 => Step {
                place,
                bytes: self.reading(place),
                answer: Reply::Value(before.clone()),
                after: before,
            },
            4..8 => {
                let value = self.random_value();
                let (bytes, answer) = self.setting(place, &value, before.is_none());
                Step {
                    place,
                    bytes,
                    answer,
                    after: Some(value),
                }
            }
            8 if self.field(place).is_none()
                && before.as_ref().is_some_and(|value| value.len() < VALUE_MAX) =>
            {
                let value = self.random_value();
                let mut after = before.unwrap_or_default();
                after.extend_from_slice(&value);
                Step {
                    place,
                    bytes: command(&[b"APPEND", name.as_bytes(), &value]),
                    answer: Reply::Number(after.len() as i64),
                    after: Some(after),
                }
            }
            _ => {
                let bytes = match self.field(place) {
                    Some((hash, field)) => command(&[b"HDEL", hash.as_bytes(), field.as_bytes()]),
                    None => command(&[b"DEL", name.as_bytes()]),
                };
                Step {
                    place,
                    bytes,
                    answer: Reply::Number(i64::from(before.is_some())),
                    after: None,
                }
            }
        }
    }

    /// What a place has.
    fn reads(&mut self, place: usize) -> Result<Option<Vec<u8>>> {
        let bytes = self.reading(place);
        self.client.send(&bytes)?;
        match self.client.reply()? {
            Reply::Value(value) => Ok(value),
            other => anyhow::bail!("a value expected, not {}", other.words()),
        }
    }

    fn check(&mut self, place: usize, what: &str) -> Result<()> {
        let has = self.reads(place)?;
        if has == self.values[place] {
            self.found.ordinary += 1;
            return Ok(());
        }
        let (has, wanted) = (
            has.map(|value| value.len()),
            self.values[place].as_ref().map(Vec::len),
        );
        let name = self.name(place);
        self.harmed(format!(
            "{name} has {has:?} bytes instead of {wanted:?} after {what}"
        ));
        self.reset(place)
    }
}

impl errors::Worker for Worker {
    const CONNECTIONS: u64 = 6;
    const REASONS: [&'static str; LEFT_OUT.len()] = [
        "redis ends when an allocation fails; in a request it fails the request, as any other failed assertion",
        "an allocation in a domain that the request does not hold fails, which is the same",
        "a wrong pointer into the keyspace may be another client's value, which the request may write to",
    ];

    fn start() -> Result<Server> {
        start(
            "redis-server-attacked",
            &[("LD_PRELOAD", INJECTOR_LIBRARY), ("INJECT_COPIES", COPIES)],
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
            values: vec![None; PLACES],
            found: Errors::default(),
        };
        for place in 0..PLACES {
            worker.reset(place)?;
        }
        Ok(worker)
    }

    fn again(&mut self) -> Result<()> {
        self.client = Client::connect()?;
        (0..PLACES).try_for_each(|place| self.reset(place))
    }

    fn ordinary(&mut self) -> Result<()> {
        let step = self.step();
        self.client.send(&step.bytes)?;
        let answer = self.client.reply()?;
        if answer == step.answer {
            self.values[step.place] = step.after;
            self.found.ordinary += 1;
            return Ok(());
        }
        let name = self.name(step.place);
        self.harmed(format!(
            "{name}: {} instead of {}",
            answer.words(),
            step.answer.words()
        ));
        self.reset(step.place)
    }

    fn hit(&mut self, kind: &'static Kind) -> Result<()> {
        let Some(arm) = self.arm(kind) else {
            return Ok(());
        };
        let mut step = self.step();
        // Reads neither allocate nor free in the keyspace.
        while matches!(arm.point, Point::Alloc | Point::Free)
            && matches!(step.answer, Reply::Value(_))
        {
            step = self.step();
        }
        let mut bytes = format!("{arm}\n").into_bytes();
        bytes.extend_from_slice(&step.bytes);
        // An answer that is shorter than it says would be waited for: what follows it is longer than any answer.
        let end = vec![b'='; END_BYTES];
        bytes.extend(command(&[b"ECHO", &end]));
        let start = Instant::now();
        self.client.send(&bytes)?;
        let (strike, answer) = self.client.struck();
        let answer = match answer {
            Ok(answer) if self.client.reply().ok() == Some(Reply::Value(Some(end))) => Some(answer),
            _ => {
                self.client = Client::connect()?;
                None
            }
        };
        let time = start.elapsed().as_millis() as u64;
        *self
            .found
            .milliseconds
            .entry(kind.name.to_owned())
            .or_default() += time;
        let name = self.name(step.place);
        let what = format!("{} ({arm}) in {name}", kind.name);
        let failure = answer.as_ref().and_then(Reply::failure);
        let reported = strike.as_ref().is_some_and(|strike| strike.fired);
        let fired = reported || failure.is_some() || answer.is_none();
        if let Some(left) = strike.and_then(|strike| strike.left) {
            self.harmed(format!("{what}: left behind: {left}"));
        }
        let right = answer.as_ref() == Some(&step.answer);
        if !fired {
            self.found.not_reached += 1;
            if right {
                self.values[step.place] = step.after;
            } else {
                self.harmed(format!("{what}: not made, but {answer:?}"));
                self.reset(step.place)?;
            }
            return Ok(());
        }
        self.found.injected += 1;
        self.found.unreported += u64::from(!reported);
        *self.found.kinds.entry(kind.name.to_owned()).or_default() += 1;
        let mine = self.reads(step.place)?;
        let (expected, counts) = match right {
            true => (step.after, &mut self.found.no_effect),
            false => (
                self.values[step.place].clone(),
                &mut self.found.request_lost,
            ),
        };
        if (right || failure.is_some()) && mine == expected {
            *counts += 1;
            self.values[step.place] = expected;
        } else {
            self.found.own_wrong += 1;
            if kind.fate != Fate::OwnDamage {
                let length = mine.map(|value| value.len());
                let wanted = expected.map(|value| value.len());
                let words = answer.as_ref().map(Reply::words);
                self.harmed(format!(
                    "{what}: {words:?}, the place has {length:?} bytes instead of {wanted:?}"
                ));
            }
            self.reset(step.place)?;
        }
        // Others: two of this connection's places.
        for _ in 0..2 {
            let place = self.random.random_range(0..PLACES);
            self.check(place, &what)?;
        }
        Ok(())
    }

    fn check_all(&mut self, what: &str) -> Result<()> {
        (0..PLACES).try_for_each(|place| self.check(place, what))
    }
}
