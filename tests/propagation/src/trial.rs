//! One trial: a server, a load, one corrupted word, and its effects.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use libc::{c_int, pid_t};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use vmsrs_ledger::client::Client;

use crate::access::{self, Access};
use crate::load::{self, Load, Request};
use crate::owner::{self, Owner};
use crate::place::{self, Damage, Region, Target};
use crate::server::{Program, Server};
use crate::tracee::{Event, Tracee, Watch, Watches};

/// Users, each with a connection and a thread.
pub const USERS: usize = 6;

/// Limit for an answer; a later one counts as a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// Requests before the corruption.
const WARM_UP: std::ops::Range<u32> = 30..120;

/// Requests to wait for one that reaches the function.
const REACH: u32 = 60;

/// Accesses of one word that are examined; more are a loop.
const ACCESSES_MAX: u32 = 20_000;

/// Functions of the server at whose start a word is corrupted inside a request.
const FUNCTIONS: [&str; 12] = [
    "serve",
    "touch",
    "charge",
    "enter_directory",
    "update_entry",
    "find_note",
    "allocate",
    "release",
    "unlink_note",
    "grow_note",
    "expression",
    "say",
];

/// Who accessed the word, relative to the request in or after which it was corrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// That request.
    SameRequest,
    /// A later request of the same user.
    SameUser,
    /// Another user's request.
    OtherUser,
    /// The thread that accepts connections.
    Server,
}

/// An access of the corrupted word.
#[derive(Clone, Debug, Serialize)]
pub struct Touch {
    /// How.
    pub access: Access,
    /// Who.
    pub who: Who,
    /// Requests since the corruption; 0 is the one in which it happened.
    pub after: u32,
    /// The server's function, if it was the server's own code.
    pub function: Option<String>,
}

/// The effect on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every answer is right, and the state at the end.
    Nothing,
    /// Only the state or the answers of the user in or after whose request it was corrupted are
    /// wrong.
    OwnWrong,
    /// Another user's are wrong.
    OthersWrong,
    /// The server died.
    Crash,
    /// An answer never came.
    Hang,
}

/// The effects of one corrupted word.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// The seed that repeats it.
    pub seed: u64,
    /// Where.
    pub region: Region,
    /// How.
    pub damage: Damage,
    /// The function at whose start it was corrupted, or `None` between two requests.
    pub inside: Option<&'static str>,
    /// The word.
    pub address: u64,
    /// The owner of a word in the heap.
    pub owner: Option<Owner>,
    /// Its value before.
    pub before: u64,
    /// Its value after.
    pub corrupted: u64,
    /// The first access.
    pub first: Option<Touch>,
    /// The first read while corrupted bytes were left.
    pub first_read: Option<Touch>,
    /// The first such read by another user's request.
    pub read_by_other: Option<Touch>,
    /// Requests until all corrupted bytes were overwritten.
    pub cleansed_after: Option<u32>,
    /// Requests that were followed.
    pub followed: u32,
    /// The end.
    pub outcome: Outcome,
    /// Requests until the first wrong answer, the crash or the hang.
    pub wrong_after: Option<u32>,
    /// Signal of a crash.
    pub signal: Option<c_int>,
    /// Whose thread crashed.
    pub crashed: Option<Who>,
}

/// The result of one request.
enum Answer {
    Line(Vec<u8>),
    Died,
    Late,
}

struct Run<'a> {
    program: &'a Program,
    base: u64,
    tracee: Tracee,
    /// Lives as long as its process is traced.
    _server: Server,
    clients: Vec<Client>,
    /// The thread of each connection.
    threads: Vec<pid_t>,
    rng: SmallRng,
    target: Target,
    damage: Damage,
    trial: Option<Trial>,
    /// The user in or after whose request the word was corrupted.
    culprit: usize,
    /// Requests since then.
    after: u32,
    /// The function at whose start a word will be corrupted.
    function: Option<&'static str>,
    /// The bytes that are still corrupted, as a mask.
    left: u64,
    /// The current value of the word.
    content: u64,
    touches: u32,
}

/// Runs the trial of a seed.
///
/// # Errors
///
/// When the server cannot be started or traced.
pub fn run(program: &Program, target: Target, seed: u64, requests: u32) -> Result<Trial> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut load = Load::new(seed, USERS);
    let mut run = Run::start(program, target, &mut rng, &load)?;
    for _ in 0..rng.random_range(WARM_UP) {
        let request = load.next_request()?;
        match run.ask(&request)? {
            Answer::Line(line) if request.expected.matches(&line) => run.culprit = request.user,
            _ => bail!("the server is wrong before anything was corrupted"),
        }
    }
    run.strike(seed, rng.random(), &mut load)?;
    run.follow(&mut load, requests)
}

impl<'a> Run<'a> {
    fn start(
        program: &'a Program,
        target: Target,
        rng: &mut SmallRng,
        load: &Load,
    ) -> Result<Self> {
        let server = program.start()?;
        let tracee = Tracee::seize(server.process())?;
        let damage = [Damage::Bit, Damage::Word, Damage::Neighbour];
        let mut run = Self {
            program,
            base: place::base(&tracee, program)?,
            tracee,
            clients: Vec::new(),
            threads: Vec::new(),
            rng: SmallRng::seed_from_u64(rng.random()),
            target,
            damage: *damage.choose(rng).context("there are kinds of damage")?,
            trial: None,
            culprit: 0,
            after: 0,
            function: None,
            left: 0,
            content: 0,
            touches: 0,
            _server: server,
        };
        for user in 0..USERS {
            let client = Client::connect(run._server.address, PATIENCE)?;
            client.set_nonblocking()?;
            run.clients.push(client);
            let request = load.first(user);
            let Answer::Line(line) = run.ask(&request)? else {
                bail!("the server died before anything was corrupted");
            };
            anyhow::ensure!(request.expected.matches(&line), "the user was not made");
            let new = run
                .tracee
                .threads()
                .find(|thread| *thread != run.tracee.process() && !run.threads.contains(thread));
            run.threads
                .push(new.context("the connection has no thread")?);
        }
        Ok(run)
    }

    /// Corrupts a word now, or when a request reaches a function.
    fn strike(&mut self, seed: u64, inside: bool, load: &mut Load) -> Result<()> {
        if inside {
            let functions: Vec<&'static str> = FUNCTIONS
                .into_iter()
                .filter(|name| self.program.symbols.function(name).is_some())
                .collect();
            let function = *functions
                .choose(&mut self.rng)
                .context("no function is known")?;
            let symbol = self.program.symbols.function(function);
            let address = symbol.context("the function is gone")?.address + self.base;
            let watches: Watches = [None, None, None, Some((Watch::Execution, address))];
            self.function = Some(function);
            self.tracee.while_stopped(|tracee| tracee.watch(watches))?;
            for _ in 0..REACH {
                let request = load.next_request()?;
                self.culprit = request.user;
                let answer = self.ask(&request)?;
                if self.trial.is_some() {
                    self.judge(&request, answer);
                    self.seed(seed);
                    return Ok(());
                }
            }
            self.function = None;
        }
        let thread = self.threads[self.culprit];
        let mut tracee_result = None;
        let (target, damage) = (self.target, self.damage);
        let user = load::name(self.culprit);
        let (program, rng) = (self.program, &mut self.rng);
        self.tracee.while_stopped(|tracee| {
            tracee_result = Some(corrupt(
                tracee, program, rng, target, damage, thread, &user,
            )?);
            Ok(())
        })?;
        self.struck(tracee_result.context("the server died before anything was corrupted")?);
        self.seed(seed);
        Ok(())
    }

    fn seed(&mut self, seed: u64) {
        if let Some(trial) = &mut self.trial {
            trial.seed = seed;
        }
    }

    fn struck(&mut self, word: Corrupted) {
        self.left = mask(word.before, word.corrupted);
        self.content = word.corrupted;
        self.after = 0;
        self.trial = Some(Trial {
            seed: 0,
            region: self.target.region(),
            damage: self.damage,
            inside: self.function,
            address: word.address,
            owner: word.owner,
            before: word.before,
            corrupted: word.corrupted,
            first: None,
            first_read: None,
            read_by_other: None,
            cleansed_after: None,
            followed: 0,
            outcome: Outcome::Nothing,
            wrong_after: None,
            signal: None,
            crashed: None,
        });
    }

    /// Sends a request and waits for its answer, while accesses are recorded.
    fn ask(&mut self, request: &Request) -> Result<Answer> {
        // A connection that is lost shows when the answer is waited for.
        let _ = self.clients[request.user].send(&request.line);
        let due = Instant::now() + PATIENCE;
        loop {
            while let Some(event) = self.tracee.poll()? {
                match event {
                    Event::Ended(_) => return Ok(Answer::Died),
                    Event::Touched { thread, slots } => self.touched(thread, slots)?,
                }
            }
            match self.clients[request.user].poll() {
                Ok(Some(line)) => return Ok(Answer::Line(line)),
                Ok(None) => {}
                // The process may still be on its way to its end.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => {}
                Err(error) => return Err(error).context("reading an answer"),
            }
            if Instant::now() > due {
                return Ok(Answer::Late);
            }
            self.wait(request.user);
        }
    }

    /// Waits for the socket, but only for a moment: a stopped thread does not wake anybody.
    fn wait(&self, user: usize) {
        let mut socket = libc::pollfd {
            fd: self.clients[user].as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let pause = libc::timespec {
            tv_sec: 0,
            tv_nsec: 20_000,
        };
        // SAFETY: one structure, and a time to wait at most.
        unsafe { libc::ppoll(&raw mut socket, 1, &raw const pause, std::ptr::null()) };
    }

    fn who(&self, thread: pid_t) -> Who {
        match self.threads.iter().position(|&known| known == thread) {
            None => Who::Server,
            Some(user) if user != self.culprit => Who::OtherUser,
            Some(_) if self.after == 0 => Who::SameRequest,
            Some(_) => Who::SameUser,
        }
    }

    /// A thread has stopped after an access, or at the function that was waited for.
    fn touched(&mut self, thread: pid_t, slots: u64) -> Result<()> {
        if slots & 0b1000 != 0 && self.trial.is_none() {
            let (target, damage) = (self.target, self.damage);
            let user = load::name(self.culprit);
            let (program, rng) = (self.program, &mut self.rng);
            let word = self.tracee.while_stopped(|tracee| {
                corrupt(tracee, program, rng, target, damage, thread, &user)
            })?;
            if let Some(word) = word {
                self.struck(word);
            }
        } else if slots & 0b11 != 0 && self.left != 0 {
            self.note(thread, slots & 1 != 0)?;
        }
        self.tracee.resume(thread)
    }

    fn note(&mut self, thread: pid_t, written: bool) -> Result<()> {
        let rip = self.tracee.registers(thread)?.rip;
        let mut code = [0; access::BEFORE + 15];
        // A return to a corrupted address leads anywhere.
        let readable = self
            .tracee
            .read(rip.wrapping_sub(access::BEFORE as u64), &mut code)
            .is_ok();
        let access = match readable {
            true => access::access(&code, rip, written),
            false if written => Access::Write,
            false => Access::Read,
        };
        let touch = Touch {
            access,
            who: self.who(thread),
            after: self.after,
            function: self
                .program
                .symbols
                .name(rip.wrapping_sub(self.base))
                .map(str::to_owned),
        };
        let Some(trial) = &mut self.trial else {
            return Ok(());
        };
        if access == Access::Read {
            trial.first_read.get_or_insert_with(|| touch.clone());
            if touch.who == Who::OtherUser {
                trial.read_by_other.get_or_insert_with(|| touch.clone());
            }
        }
        trial.first.get_or_insert(touch);
        if written && let Ok(now) = self.tracee.word(trial.address) {
            // What is computed from a corrupted value is corrupted; other writes overwrite.
            if access == Access::Write {
                self.left &= !mask(now, self.content);
            }
            self.content = now;
            if self.left == 0 {
                trial.cleansed_after = Some(self.after);
            }
        }
        self.touches += 1;
        if self.left == 0 || self.touches == ACCESSES_MAX {
            self.tracee
                .while_stopped(|tracee| tracee.watch([None; 4]))?;
        }
        Ok(())
    }

    /// Compares an answer; returns whether the server is still running.
    fn judge(&mut self, request: &Request, answer: Answer) -> bool {
        let after = self.after;
        let own = request.user == self.culprit;
        let death = self.tracee.death();
        let crashed = death.map(|death| self.who(death.thread));
        let after_fault = crashed.map(|who| Touch {
            access: Access::Read,
            who,
            after,
            function: None,
        });
        let Some(trial) = &mut self.trial else {
            return true;
        };
        let outcome = match answer {
            Answer::Line(line) if request.expected.matches(&line) => return true,
            Answer::Line(_) if own => Outcome::OwnWrong,
            Answer::Line(_) => Outcome::OthersWrong,
            Answer::Died => Outcome::Crash,
            Answer::Late => Outcome::Hang,
        };
        trial.outcome = trial.outcome.max(outcome);
        trial.wrong_after.get_or_insert(after);
        if outcome == Outcome::Crash {
            trial.signal = death.map(|death| death.signal);
            trial.crashed = crashed;
            // A return to a corrupted address faults before its watchpoint traps.
            if death.is_some_and(|death| death.stack_pointer == trial.address) {
                trial.first = trial.first.take().or(after_fault.clone());
                trial.first_read = trial.first_read.take().or(after_fault);
            }
        }
        !matches!(outcome, Outcome::Crash | Outcome::Hang)
    }

    fn follow(mut self, load: &mut Load, requests: u32) -> Result<Trial> {
        let mut alive = !self.is_over();
        while alive && self.after < requests {
            self.after += 1;
            let request = load.next_request()?;
            let answer = self.ask(&request)?;
            alive = self.judge(&request, answer);
        }
        let followed = self.after;
        if alive {
            self.tracee
                .while_stopped(|tracee| tracee.watch([None; 4]))?;
            self.left = 0;
            'users: for user in 0..USERS {
                for request in load.last(user) {
                    let answer = self.ask(&request)?;
                    if !self.judge(&request, answer) {
                        break 'users;
                    }
                }
            }
        }
        let mut trial = self.trial.take().context("nothing was corrupted")?;
        trial.followed = followed;
        Ok(trial)
    }

    fn is_over(&self) -> bool {
        self.trial
            .as_ref()
            .is_some_and(|trial| matches!(trial.outcome, Outcome::Crash | Outcome::Hang))
    }
}

/// A word and its values.
struct Corrupted {
    address: u64,
    owner: Option<Owner>,
    before: u64,
    corrupted: u64,
}

/// Corrupts a word and watches it, while all threads are stopped.
fn corrupt(
    tracee: &mut Tracee,
    program: &Program,
    rng: &mut SmallRng,
    target: Target,
    damage: Damage,
    thread: pid_t,
    user: &str,
) -> Result<Corrupted> {
    let address = place::choose(rng, tracee, program, target, thread)?;
    let owner = match target.region() {
        Region::Heap => Some(owner::owner(tracee, program, address, user)?),
        _ => None,
    };
    let before = tracee.word(address)?;
    let neighbour = tracee.word(address ^ 8)?;
    let corrupted = place::corrupt(rng, damage, before, neighbour);
    tracee.set_word(address, corrupted)?;
    tracee.watch([
        Some((Watch::Writes, address)),
        Some((Watch::Accesses, address)),
        None,
        None,
    ])?;
    Ok(Corrupted {
        address,
        owner,
        before,
        corrupted,
    })
}

/// The bytes in which two words differ, as a mask.
fn mask(one: u64, other: u64) -> u64 {
    let bytes = (one ^ other).to_le_bytes();
    u64::from_le_bytes(bytes.map(|byte| if byte == 0 { 0 } else { 0xff }))
}

#[cfg(test)]
mod tests {
    use super::mask;

    #[test]
    fn a_mask_has_the_bytes_that_differ() {
        assert_eq!(mask(0x0102_0304, 0x0102_0305), 0xff);
        assert_eq!(mask(0, 0x8000_0000_0000_0100), 0xff00_0000_0000_ff00);
        assert_eq!(mask(7, 7), 0);
    }
}
