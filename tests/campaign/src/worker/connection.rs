//! The connection to a server that may restart.

use std::io;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use vmsrs_ledger::client::Client;
use vmsrs_ledger::model::User;
use vmsrs_ledger::reply::Reply;
use vmsrs_ledger::users::lock;

use super::{Answer, Broken, Worker};
use crate::arm::{Arm, Strike};
use crate::kind::Fate;
use crate::world::Over;

/// Between two attempts to reach a server that is restarting.
const RETRY: Duration = Duration::from_millis(20);

impl Worker<'_> {
    /// Selects the user on the connection, and creates it if it does not exist.
    pub(super) fn choose(&mut self, user: &User) -> Result<(), Over> {
        while self.chosen.as_ref() != Some(&user.name) || self.client.is_none() {
            self.connect()?;
            let Ok(answer) = self.ask(None, &format!("USER {}", user.name))? else {
                continue;
            };
            if answer.line == format!("OK user={}", user.name).as_bytes() {
                self.chosen = Some(user.name.clone());
                return Ok(());
            }
            let words = String::from_utf8_lossy(&answer.line).into_owned();
            if self.world.is_damaged(self.life) {
                self.world.count.lost_in_damaged.fetch_add(1, SeqCst);
            } else {
                self.world.harm(format!("USER {}: {words}", user.name));
            }
            if self.world.over.load(SeqCst) {
                return Err(Over);
            }
        }
        Ok(())
    }

    /// Sends a line whose answer may contain newlines; `None` if it does.
    pub(super) fn ask_wild(&mut self, line: &str) -> Result<Result<Option<Vec<u8>>, Broken>, Over> {
        let Ok(answer) = self.ask(None, &format!("{line}\nPING"))? else {
            return Ok(Err(Broken));
        };
        let mut found = Some(answer.line);
        loop {
            match self.receive()? {
                Ok(line) if line == b"OK pong" => return Ok(Ok(found)),
                Ok(_) => found = None,
                Err(Broken) => return Ok(Err(Broken)),
            }
        }
    }

    /// Sends a line and waits for the answer.
    pub(super) fn ask(
        &mut self,
        arm: Option<Arm>,
        line: &str,
    ) -> Result<Result<Answer, Broken>, Over> {
        let world = self.world;
        if world.over.load(SeqCst) {
            return Err(Over);
        }
        let sealing = world.sealing.read().unwrap_or_else(PoisonError::into_inner);
        let arm = match (arm, *sealing) {
            (Some(arm), seal) => Some(Arm {
                seal: arm.seal || seal,
                ..arm
            }),
            (None, true) => Some(Arm::SEAL),
            (None, false) => None,
        };
        let arm = arm.filter(|_| world.options.injector);
        let text = match arm {
            Some(arm) => format!("{arm}\n{line}"),
            None => line.to_owned(),
        };
        world.count.requests.fetch_add(1, SeqCst);
        let Some(client) = &mut self.client else {
            return Ok(Err(Broken));
        };
        world.count.in_flight.fetch_add(1, SeqCst);
        let mut answer = client.ask(&text);
        let mut strike = None;
        if let Ok(first) = &answer
            && arm.is_some_and(|arm| arm.is_reported())
        {
            strike = Strike::parse(first);
            if strike.is_some() {
                answer = client.receive();
            }
        }
        world.count.in_flight.fetch_sub(1, SeqCst);
        drop(sealing);
        let found = answer.as_deref().unwrap_or(b"(none)");
        world.trace(self.connection, &text, found);
        self.note_failure(arm, answer.as_deref().ok());
        // An error that was made is judged with its request.
        let unarmed = strike.as_ref().filter(|strike| !strike.fired);
        if let Some(left) = unarmed.and_then(|strike| strike.left.as_ref()) {
            world.harm(format!("left behind on the thread of {text:?}: {left}"));
        }
        match answer {
            Ok(line) => Ok(Ok(Answer { strike, line })),
            Err(error) => self.broken(&error, &text).map(Err),
        }
    }

    /// Records a failure in an answer; `line` is `None` without an answer. Requests without an error do not fail unless
    /// the process is damaged.
    fn note_failure(&self, arm: Option<Arm>, line: Option<&[u8]>) {
        let damaged = self.world.is_damaged(self.life);
        let armed = arm.is_some_and(|arm| arm.is_reported());
        let mut failures = lock(&self.world.failures);
        match line.map(Reply::parse) {
            Some(Ok(Reply::Failed(failure))) if !damaged => failures.answered(&failure),
            None if armed || damaged => failures.uncertain(),
            Some(_) if damaged => failures.uncertain(),
            _ => {}
        }
    }

    pub(super) fn receive(&mut self) -> Result<Result<Vec<u8>, Broken>, Over> {
        let Some(client) = &mut self.client else {
            return Ok(Err(Broken));
        };
        match client.receive() {
            Ok(line) => Ok(Ok(line)),
            Err(error) => self.broken(&error, "(the rest of an answer)").map(Err),
        }
    }

    pub(super) fn broken(&mut self, error: &io::Error, line: &str) -> Result<Broken, Over> {
        let world = self.world;
        self.client = None;
        self.chosen = None;
        let timeout = matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        );
        // A rebooting guest does not close its connections.
        let away = world.with_life(self.life, |life| {
            life.broken.get_or_insert_with(Instant::now);
            life.ending.is_some_and(|kind| kind.fate == Fate::Panics)
        });
        // A damaged process may hang: the supervisor kills it.
        let away = away || world.is_damaged(self.life);
        if timeout && !away {
            world.hang(format!(
                "connection {}: no answer to {line:?}",
                self.connection
            ));
            return Err(Over);
        }
        Ok(Broken)
    }

    /// Connects, if there is no connection, to a server that may be restarting.
    pub(super) fn connect(&mut self) -> Result<(), Over> {
        let world = self.world;
        let start = Instant::now();
        while self.client.is_none() {
            if world.over.load(SeqCst) {
                return Err(Over);
            }
            let options = world.options;
            let connected =
                Client::connect(options.address, options.reply_timeout).and_then(|mut client| {
                    client.keep_alive()?;
                    let stats = client.stats()?;
                    Ok((client, stats))
                });
            match connected {
                Ok((client, stats)) => {
                    self.life = world.life(&stats);
                    world.connected(self.connection, self.life, client.handle().ok());
                    self.client = Some(client);
                }
                Err(error) if start.elapsed() > options.outage_limit => {
                    world.hang(format!("the server does not come back: {error}"));
                    return Err(Over);
                }
                Err(_) => thread::sleep(RETRY),
            }
        }
        Ok(())
    }
}
