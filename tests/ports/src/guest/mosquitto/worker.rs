//! A connection with topics of its own and some that all share, so that it knows every answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Result, bail};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use vmsrs_campaign::arm::{Arm, Strike};
use vmsrs_campaign::kind::{Fate, Kind};

use super::client::{
    Client, DISCONNECT, Hello, Message, PINGREQ, PINGRESP, PUBACK, PUBLISH, Received, SUBACK,
    UNSUBACK, message, packet, publish, subscribe, unsubscribe,
};
use super::start;
use crate::guest::errors::{self, COPIES, INJECTOR_LIBRARY, LEFT_OUT, Worker as _};
use crate::guest::server::Server;
use crate::plan::Errors;

/// Topics of each connection.
const TOPICS: usize = 48;
/// Longest value.
const VALUE_MAX: usize = 3000;
/// Connections.
const WORKERS: usize = 6;
/// One in so many ordinary commands is a message to all.
const SHARED: u32 = 5;
/// What all subscribe to.
const SHARED_TOPICS: &str = "shared/#";

/// Messages to all that each worker has sent.
static SENT: [AtomicU64; WORKERS] = [const { AtomicU64::new(0) }; WORKERS];

/// The topic, counted from 1, of each worker's last publication whose calls were changed.
static CHANGED: [AtomicU64; WORKERS] = [const { AtomicU64::new(0) }; WORKERS];

/// A command, and what it does to its topic.
struct Step {
    topic: usize,
    bytes: Vec<u8>,
    /// The right answer: type and reason of the server's packet, and messages.
    answer: (u8, u8),
    messages: Vec<(Vec<u8>, bool)>,
    /// What the topic has retained afterwards.
    after: Option<Vec<u8>>,
}

/// What came until the server answered the ping that follows each command.
#[derive(Debug, Default)]
struct Answer {
    strike: Option<Strike>,
    answers: Vec<(u8, u8)>,
    messages: Vec<Message>,
    /// How the connection ended, if it did.
    ended: Option<String>,
}

/// Whose topic a message is of.
#[derive(Debug, PartialEq, Eq)]
enum Origin {
    /// All.
    Shared,
    /// The connection that it came to, or nobody's: what an error has made of one of its own.
    Own,
    /// Another connection, so it should not have come.
    Other,
}

fn origin(topic: &str, number: usize) -> Origin {
    let mut levels = topic.split('/');
    match (levels.next(), levels.next()) {
        (Some("shared"), Some(_)) => Origin::Shared,
        (Some("own"), Some(owner))
            if (0..WORKERS).any(|other| other != number && owner == name_of(other)) =>
        {
            Origin::Other
        }
        _ => Origin::Own,
    }
}

/// Names differ in more than a bit or a byte, so that one that is changed is nobody's.
fn name_of(number: usize) -> String {
    let letter = char::from(b'a' + number as u8);
    std::iter::repeat_n(letter, 8).collect()
}

fn topic_of(number: usize, topic: usize) -> String {
    format!("own/{}/{topic:04}", name_of(number))
}

/// A connection with its topics.
pub(super) struct Worker {
    number: usize,
    client: Client,
    random: SmallRng,
    values: Vec<Option<Vec<u8>>>,
    /// The last message of each worker to all.
    seen: [u64; WORKERS],
    /// A call was changed in one of its subscriptions: it may have one more, of a name that nobody knows.
    has_strange_subscription: bool,
    found: Errors,
}

impl Worker {
    fn name(&self) -> String {
        name_of(self.number)
    }

    fn topic(&self, topic: usize) -> String {
        topic_of(self.number, topic)
    }

    fn hello(&self, fresh: bool) -> Result<(Client, bool)> {
        Client::connect(&Hello {
            name: &self.name(),
            fresh,
            will: None,
        })
    }

    /// Connects again; its session must be there.
    fn reconnect(&mut self) -> Result<()> {
        let (client, session) = self.hello(false)?;
        self.client = client;
        if !session {
            self.harmed("the session is lost".to_owned());
            self.subscribe_all()?;
        }
        Ok(())
    }

    fn subscribe_all(&mut self) -> Result<()> {
        for topic in [SHARED_TOPICS.to_owned(), format!("own/{}/#", self.name())] {
            let answer = self.exchange(&subscribe(&topic))?;
            if answer.answers != [(SUBACK, 1)] {
                bail!("subscription to {topic}: {answer:?}");
            }
        }
        Ok(())
    }

    fn random_value(&mut self) -> Vec<u8> {
        let length = self.random.random_range(1..VALUE_MAX);
        vec![self.random.random_range(b'a'..=b'z'); length]
    }

    /// Notes a message to all: each must come, in order; again only if it was not acknowledged.
    fn shared(&mut self, message: &Message) -> Result<()> {
        let text = String::from_utf8_lossy(&message.payload).into_owned();
        let parsed = text.split_once(' ').and_then(|(from, number)| {
            Some((
                from.parse::<usize>().ok()?,
                number.trim_end_matches('.').parse::<u64>().ok()?,
            ))
        });
        match parsed {
            Some((from, number)) if from < WORKERS && number == self.seen[from] + 1 => {
                self.seen[from] = number;
            }
            Some((from, number))
                if from < WORKERS && message.again && number <= self.seen[from] => {}
            _ => {
                let seen = self.seen;
                let start: String = text.chars().take(40).collect();
                self.harmed(format!("message to all {start:?} after {seen:?}"));
                if let Some((from, number)) = parsed
                    && from < WORKERS
                {
                    self.seen[from] = number;
                }
            }
        }
        Ok(())
    }

    /// Two changed calls can meet: a subscription and a publication that lose the same part of their names. Each is its own
    /// client's damage, and is only told.
    fn message_of_another(&mut self, message: &Message) {
        let has_met = (0..WORKERS).any(|owner| {
            let topic = CHANGED[owner].load(Ordering::Relaxed);
            topic > 0 && message.topic == topic_of(owner, topic as usize - 1)
        });
        let words = format!(
            "a message of {} with {} bytes, which is another's",
            message.topic,
            message.payload.len()
        );
        match self.has_strange_subscription && has_met {
            true => self.complain(format!("{words}, by changed calls of both")),
            false => self.harmed(words),
        }
    }

    /// Sends a command and a ping, and reads what comes until the ping's answer.
    fn exchange(&mut self, bytes: &[u8]) -> Result<Answer> {
        let mut bytes = bytes.to_vec();
        bytes.extend(packet(PINGREQ, &[]));
        let mut answer = Answer::default();
        if let Err(error) = self.client.send(&bytes) {
            answer.ended = Some(format!("{error:#}"));
        }
        while answer.ended.is_none() {
            match self.client.receive() {
                Ok(Received::Strike(strike)) => answer.strike = strike,
                Ok(Received::End) => answer.ended = Some("closed".to_owned()),
                Err(error) => answer.ended = Some(format!("{error:#}")),
                Ok(Received::Packet(PINGRESP, _)) => break,
                Ok(Received::Packet(DISCONNECT, body)) => {
                    answer.ended = Some(format!("ended with {body:02x?}"));
                }
                Ok(Received::Packet(first, body)) if first & 0xf0 == PUBLISH => {
                    let message = message(first, &body)?;
                    // The connection may be gone.
                    let _ = self.client.acknowledge(&message);
                    match origin(&message.topic, self.number) {
                        Origin::Shared => self.shared(&message)?,
                        Origin::Own => answer.messages.push(message),
                        Origin::Other => self.message_of_another(&message),
                    }
                }
                Ok(Received::Packet(first, body)) => {
                    // The reason: the last byte, or none for success.
                    let reason = match (first, body.len()) {
                        (PUBACK, 2) => 0,
                        (_, _) => body.last().copied().unwrap_or_default(),
                    };
                    answer.answers.push((first, reason));
                }
            }
        }
        Ok(answer)
    }

    /// Whether the answer is what the command should have.
    fn is_right(&self, step: &Step, answer: &Answer) -> bool {
        let topic = self.topic(step.topic);
        answer.ended.is_none()
            && answer.answers == [step.answer]
            && answer.messages.len() == step.messages.len()
            && answer
                .messages
                .iter()
                .zip(&step.messages)
                .all(|(message, (payload, retained))| {
                    message.topic == topic
                        && message.payload == *payload
                        && message.retained == *retained
                })
    }

    fn reading(&self, topic: usize) -> Step {
        let value = self.values[topic].clone();
        Step {
            topic,
            bytes: subscribe(&self.topic(topic)),
            answer: (SUBACK, 1),
            messages: value.iter().map(|value| (value.clone(), true)).collect(),
            after: value,
        }
    }

    /// Gives a topic a value, whatever it had.
    fn reset(&mut self, topic: usize) -> Result<()> {
        let value = self.random_value();
        let answer = self.exchange(&publish(&self.topic(topic), &value, true, true))?;
        if answer.answers != [(PUBACK, 0)] {
            bail!(
                "a value is not taken: {:?} {:?}",
                answer.answers,
                answer.ended
            );
        }
        self.values[topic] = Some(value);
        Ok(())
    }

    /// Draws a command.
    fn step(&mut self) -> Step {
        let topic = self.random.random_range(0..TOPICS);
        let name = self.topic(topic);
        match self.random.random_range(0..10) {
            0..4 => self.reading(topic),
            4..8 => {
                let value = self.random_value();
                Step {
                    topic,
                    bytes: publish(&name, &value, true, true),
                    answer: (PUBACK, 0),
                    messages: vec![(value.clone(), false)],
                    after: Some(value),
                }
            }
            8 => Step {
                topic,
                bytes: publish(&name, b"", true, true),
                answer: (PUBACK, 0),
                messages: vec![(Vec::new(), false)],
                after: None,
            },
            _ => {
                let value = self.random_value();
                Step {
                    topic,
                    bytes: publish(&name, &value, true, false),
                    answer: (PUBACK, 0),
                    messages: vec![(value, false)],
                    after: self.values[topic].clone(),
                }
            }
        }
    }

    /// Ends what a reading has begun.
    fn settle(&mut self, step: &Step) -> Result<()> {
        if step.answer.0 == SUBACK {
            let answer = self.exchange(&unsubscribe(&self.topic(step.topic)))?;
            if answer.answers.len() != 1 || answer.answers[0].0 != UNSUBACK {
                bail!("a subscription does not end: {answer:?}");
            }
        }
        Ok(())
    }

    /// What a topic has.
    fn reads(&mut self, topic: usize) -> Result<Option<Vec<u8>>> {
        let step = self.reading(topic);
        let mut answer = self.exchange(&step.bytes)?;
        if let Some(end) = answer.ended {
            bail!("reading ended: {end}");
        }
        self.settle(&step)?;
        Ok(answer.messages.pop().map(|message| message.payload))
    }

    fn check(&mut self, topic: usize, what: &str) -> Result<()> {
        let has = self.reads(topic)?;
        if has == self.values[topic] {
            self.found.ordinary += 1;
            return Ok(());
        }
        let (has, wanted) = (
            has.map(|value| value.len()),
            self.values[topic].as_ref().map(Vec::len),
        );
        let name = self.topic(topic);
        self.harmed(format!(
            "{name} has {has:?} bytes instead of {wanted:?} after {what}"
        ));
        self.reset(topic)
    }

    /// Sends a message to all.
    fn tell_all(&mut self) -> Result<()> {
        let number = SENT[self.number].load(Ordering::Relaxed) + 1;
        let dots = ".".repeat(self.random.random_range(0..300));
        let payload = format!("{} {number}{dots}", self.number);
        let answer = self.exchange(&publish("shared/news", payload.as_bytes(), true, false))?;
        // It is taken, whatever else is wrong: the next one has another number.
        if answer.answers.contains(&(PUBACK, 0)) {
            SENT[self.number].store(number, Ordering::Relaxed);
        }
        if answer.answers != [(PUBACK, 0)] || answer.ended.is_some() || !answer.messages.is_empty()
        {
            let topics: Vec<_> = answer.messages.iter().map(|one| &one.topic).collect();
            bail!(
                "a message to all: {:?} {:?}, and messages of {topics:?}",
                answer.answers,
                answer.ended
            );
        }
        self.found.ordinary += 1;
        Ok(())
    }

    /// Sorts an error by what it has done.
    fn judge(&mut self, kind: &'static Kind, arm: &Arm, step: &Step, answer: Answer) -> Result<()> {
        let what = format!("{} ({arm}) in {:02x}", kind.name, step.bytes[0]);
        let ended = answer.ended.clone();
        let right = self.is_right(step, &answer);
        if ended.is_some() {
            self.reconnect()?;
        }
        let strike = answer.strike.as_ref();
        let reported = strike.is_some_and(|strike| strike.fired);
        let fired = reported || ended.is_some();
        if let Some(left) = strike.and_then(|strike| strike.left.clone()) {
            self.harmed(format!("{what}: left behind: {left}"));
        }
        if ended.is_none() {
            self.settle(step)?;
        }
        if !fired {
            self.found.not_reached += 1;
            if right {
                self.values[step.topic] = step.after.clone();
            } else {
                self.harmed(format!("{what}: not made, but {:?}", answer.answers));
                self.reset(step.topic)?;
            }
            return Ok(());
        }
        self.found.injected += 1;
        self.found.unreported += u64::from(!reported);
        *self.found.kinds.entry(kind.name.to_owned()).or_default() += 1;
        let mine = self.reads(step.topic)?;
        let (expected, counts) = match right {
            true => (step.after.clone(), &mut self.found.no_effect),
            false => (
                self.values[step.topic].clone(),
                &mut self.found.request_lost,
            ),
        };
        if (right || ended.is_some()) && mine == expected {
            *counts += 1;
            self.values[step.topic] = expected;
        } else {
            self.found.own_wrong += 1;
            if kind.fate != Fate::OwnDamage {
                let (has, wanted) = (
                    mine.map(|value| value.len()),
                    expected.map(|value| value.len()),
                );
                self.harmed(format!(
                    "{what}: {:?} {ended:?}, the topic has {has:?} bytes instead of {wanted:?}",
                    answer.answers
                ));
            }
            self.reset(step.topic)?;
        }
        // Others: two of this connection's topics.
        for _ in 0..2 {
            let topic = self.random.random_range(0..TOPICS);
            self.check(topic, &what)?;
        }
        Ok(())
    }
}

impl errors::Worker for Worker {
    const CONNECTIONS: u64 = WORKERS as u64;
    const REASONS: [&'static str; LEFT_OUT.len()] = [
        "mosquitto answers an allocation that fails by leaving out what it was for",
        "an allocation in a domain that the request does not hold fails, and mosquitto leaves out what it was for",
        "a wrong pointer into the broker's domain may be another client's block, which the request may write to",
    ];

    fn start() -> Result<Server> {
        SENT.iter()
            .chain(&CHANGED)
            .for_each(|sent| sent.store(0, Ordering::Relaxed));
        start(
            "mosquitto-attacked",
            &[("LD_PRELOAD", INJECTOR_LIBRARY), ("INJECT_COPIES", COPIES)],
        )
    }

    fn new(number: u64, seed: u64) -> Result<Self> {
        let mut worker = Self {
            number: number as usize,
            client: Client::open()?,
            random: SmallRng::seed_from_u64(seed << 8 | number),
            values: vec![None; TOPICS],
            seen: [0; WORKERS],
            has_strange_subscription: false,
            found: Errors::default(),
        };
        worker.client = worker.hello(true)?.0;
        worker.subscribe_all()?;
        for topic in 0..TOPICS {
            worker.reset(topic)?;
        }
        Ok(worker)
    }

    fn again(&mut self) -> Result<()> {
        self.reconnect()?;
        (0..TOPICS).try_for_each(|topic| self.reset(topic))
    }

    fn ordinary(&mut self) -> Result<()> {
        if self.random.random_range(0..SHARED) == 0 {
            return self.tell_all();
        }
        let step = self.step();
        let answer = self.exchange(&step.bytes)?;
        if self.is_right(&step, &answer) {
            self.settle(&step)?;
            self.values[step.topic] = step.after;
            self.found.ordinary += 1;
            return Ok(());
        }
        let sizes: Vec<_> = answer
            .messages
            .iter()
            .map(|message| message.payload.len())
            .collect();
        self.harmed(format!(
            "{:02x} for {}: {:?} with {sizes:?} bytes, {:?}, instead of {:?}",
            step.bytes[0],
            self.topic(step.topic),
            answer.answers,
            answer.ended,
            step.answer
        ));
        self.reconnect()?;
        self.settle(&step)?;
        self.reset(step.topic)
    }

    fn hit(&mut self, kind: &'static Kind) -> Result<()> {
        let Some(arm) = self.arm(kind) else {
            return Ok(());
        };
        let step = self.step();
        let is_publication = step.bytes[0] & 0xf0 == PUBLISH;
        let changed = kind.fate == Fate::OwnDamage;
        self.has_strange_subscription |= changed && !is_publication;
        let topic = if changed && is_publication {
            step.topic as u64 + 1
        } else {
            0
        };
        CHANGED[self.number].store(topic, Ordering::Relaxed);
        let mut bytes = format!("{arm}\n").into_bytes();
        bytes.extend_from_slice(&step.bytes);
        let start = Instant::now();
        let answer = self.exchange(&bytes)?;
        let time = start.elapsed().as_millis() as u64;
        *self
            .found
            .milliseconds
            .entry(kind.name.to_owned())
            .or_default() += time;
        self.judge(kind, &arm, &step, answer)
    }

    fn check_all(&mut self, what: &str) -> Result<()> {
        (0..TOPICS).try_for_each(|topic| self.check(topic, what))?;
        let sent: Vec<u64> = SENT
            .iter()
            .map(|sent| sent.load(Ordering::Relaxed))
            .collect();
        if sent != self.seen {
            let seen = self.seen;
            self.harmed(format!("messages to all: {seen:?} of {sent:?} came"));
        }
        Ok(())
    }

    fn found(&mut self) -> &mut Errors {
        &mut self.found
    }

    fn random(&mut self) -> &mut SmallRng {
        &mut self.random
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_topics_of_others_are_told_apart() {
        assert_eq!(origin("shared/news", 0), Origin::Shared);
        assert_eq!(origin("own/bbbbbbbb/0001", 0), Origin::Other);
        for own in [
            "own/aaaaaaaa/0001",
            "own/aaaaaa",
            "own/gggggggg/1",
            "own",
            "",
        ] {
            assert_eq!(origin(own, 0), Origin::Own, "{own:?}");
        }
    }
}
