//! One connection: ordinary requests, errors among them, and what each must leave behind.
//!
//! A request is sent while the model of the users that it touches is locked, so the model knows
//! exactly what the answer must be. When the server goes away with a request under way, the users'
//! states tell whether the request was committed: wholly or not at all.

use std::io;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::SmallRng;
use vmsrs_demo::client::Client;
use vmsrs_demo::command::Command;
use vmsrs_demo::kind::detector;
use vmsrs_demo::model::{DirectoryChange, Expected, User};
use vmsrs_demo::plan::Plan as Load;
use vmsrs_demo::reply::Reply;

use crate::arm::{Arm, Point, Strike};
use crate::class::{Class, Seen, classify};
use crate::kind::{Fate, Kind};
use crate::plan::{Means, Plan, Planned};
use crate::task::Task;
use crate::world::{Over, Retired, World, lock};

/// Between two attempts to reach a server that is away.
const RETRY: Duration = Duration::from_millis(20);
/// Errors whose damage stays hidden in the heap of the user's own domain.
const HIDDEN: [&str; 5] = ["shorten", "early-free", "flip", "dirty", "elsewhere"];

/// The connection is gone, and with it the answer.
#[derive(Debug, Clone, Copy)]
struct Broken;

/// An answer, and what the injector said before it.
struct Answer {
    strike: Option<Strike>,
    line: Vec<u8>,
}

/// What a request does if it is done.
struct Effect {
    expected: Expected,
    change: DirectoryChange,
    user: User,
    receiver: Option<User>,
}

/// Which side of a request a state is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Before,
    After,
    Neither,
}

/// One connection.
pub(crate) struct Worker<'a> {
    world: &'a World<'a>,
    connection: usize,
    client: Option<Client>,
    /// The server's life that `client` belongs to.
    life: usize,
    /// The last life in which everything was read back.
    audited: usize,
    plan: Plan,
    load: Load,
    /// Indices of its users.
    own: Vec<usize>,
    /// The one in `own` for whom the next request is.
    current: usize,
    /// The user that the connection has chosen with `USER`.
    chosen: Option<String>,
    /// Users made so far in place of others.
    made: u32,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(world: &'a World<'a>, connection: usize) -> Self {
        let options = world.options;
        Self {
            world,
            connection,
            client: None,
            life: 0,
            audited: 0,
            plan: Plan::new(options.seed, connection, options.connections)
                .with_restarts(options.restarts),
            load: Load::new(options.seed, connection),
            own: (connection..options.users)
                .step_by(options.connections)
                .collect(),
            current: 0,
            chosen: None,
            made: 0,
        }
    }

    pub(crate) fn run(&mut self, start: Instant) {
        let world = self.world;
        for number in 0.. {
            if world.count.injected.load(SeqCst) >= world.options.errors {
                return;
            }
            if start.elapsed() > world.options.deadline {
                world.over.store(true, SeqCst);
                world.complain("the run was given up: it took too long".to_owned());
            }
            let planned = self.plan.error(number);
            if self.round(&planned).is_err() {
                return;
            }
        }
    }

    /// Some ordinary requests and an error.
    fn round(&mut self, planned: &Planned) -> Result<(), Over> {
        self.audit_if_due()?;
        for _ in 0..planned.ordinary {
            self.current = self.load.choose_user(self.current, self.own.len());
            let index = self.own[self.current];
            let others = self.others(index);
            let command = {
                let user = lock(&self.world.users[index]);
                self.load.next(&user, &others, false).command
            };
            self.ordinary(index, command)?;
        }
        self.current = self.load.choose_user(self.current, self.own.len());
        let index = self.own[self.current];
        match planned.means {
            Means::Bug(bug) => {
                let preparation = bug.preparation(&lock(&self.world.users[index]));
                if let Some(command) = preparation {
                    self.ordinary(index, command)?;
                }
                let mut rng = SmallRng::seed_from_u64(planned.draw);
                let command = {
                    let user = lock(&self.world.users[index]);
                    // A transfer may have changed the user since.
                    if bug.preparation(&user).is_some() {
                        return Ok(());
                    }
                    bug.request(&user, &mut rng)
                };
                self.bug(index, planned.kind, &command)
            }
            Means::Flip(number) => self.flip(planned.kind, number),
            Means::Arm(arm, Task::NewUser) => self.new_user(planned.kind, arm),
            Means::Arm(arm, task) => match planned.kind.fate {
                Fate::Detected | Fate::OwnDamage => self.error(index, planned, arm, task),
                Fate::Kills | Fate::Panics | Fate::Untagged => {
                    self.ending(index, planned, arm, task)
                }
            },
        }
    }

    /// The users that money may go to.
    fn others(&self, index: usize) -> Vec<(usize, String)> {
        // Names are filled in when the receiver is locked.
        (0..self.world.users.len())
            .filter(|other| *other != index)
            .map(|other| (other, String::new()))
            .collect()
    }

    // ---- Requests ---------------------------------------------------------------------------

    /// Sends an ordinary request and holds its answer against the model.
    fn ordinary(&mut self, index: usize, command: Command) -> Result<(), Over> {
        self.with_users(index, command, None, |_, _, _, _| Ok(()))
            .map(drop)
    }

    /// Sends a request with its users' models locked. An answer that says that the error was made
    /// is given to `struck`, everything else is held against the model. Says whether it was made.
    fn with_users(
        &mut self,
        index: usize,
        mut command: Command,
        arm: Option<Arm>,
        struck: impl FnOnce(&mut Self, &mut User, Effect, Struck<'_>) -> Result<(), Over>,
    ) -> Result<Made, Over> {
        let world = self.world;
        // Models are locked in order of index, so that no two connections wait for each other.
        let receiver = match &command {
            Command::Transfer { receiver, .. } => Some(*receiver),
            _ => None,
        };
        let early = receiver
            .filter(|receiver| *receiver < index)
            .map(|receiver| lock(&world.users[receiver]));
        let mut user = lock(&world.users[index]);
        let mut receiver = early.or_else(|| Some(lock(&world.users[receiver?])));
        if let (Command::Transfer { name, .. }, Some(receiver)) = (&mut command, &receiver) {
            name.clone_from(&receiver.name);
        }
        self.choose(&user)?;
        let mut after = user.clone();
        let mut receiver_after = receiver.as_deref().cloned();
        let (expected, change) = after.apply(&command, receiver_after.as_mut());
        let effect = Effect {
            expected,
            change,
            user: after,
            receiver: receiver_after,
        };
        let line = command.to_string();
        let life = self.life;
        let Ok(answer) = self.ask(arm, &line)? else {
            let mutated = arm.is_some_and(|arm| arm.is_mutation());
            let parts = (&effect, &command);
            let side = self.settle(&mut user, receiver.as_deref_mut(), parts, mutated)?;
            return Ok(Made::Broken(life, side));
        };
        if let Some(strike) = answer.strike.filter(|strike| strike.fired) {
            let parts = Struck {
                command: &command,
                strike,
                line: &answer.line,
            };
            let result = struck(self, &mut user, effect, parts);
            return result.map(|()| Made::Yes);
        }
        match Reply::parse(&answer.line) {
            Ok(Reply::Answer(found)) if effect.expected.matches(&found) => {
                world.add(effect.change);
                *user = effect.user;
                if let (Some(receiver), Some(after)) = (receiver.as_deref_mut(), effect.receiver) {
                    *receiver = after;
                }
            }
            Ok(Reply::Failed(failure)) => {
                if matches!(command, Command::Directory) {
                    world.add_maybe(&command);
                }
                // One with a deadline may have to wait too long for others before it gets to its error.
                let late = arm.is_some_and(|arm| arm.deadline_ms > 0);
                if world.is_damaged(self.life) {
                    world.count.lost_in_damaged.fetch_add(1, SeqCst);
                } else if !late {
                    lock(&world.incidents).push(failure.incident);
                    world.harm(format!(
                        "{} {command}: failed as {failure:?} ({})",
                        user.name, self.connection
                    ));
                }
            }
            other => {
                world.harm(format!(
                    "{} {command}: {other:?} instead of {:?}",
                    user.name, effect.expected
                ));
                world.add_maybe(&command);
                self.retire(&mut user)?;
            }
        }
        Ok(Made::No)
    }

    /// Makes an error in a request that has an answer whatever happens.
    fn error(&mut self, index: usize, planned: &Planned, arm: Arm, task: Task) -> Result<(), Over> {
        let world = self.world;
        let kind = planned.kind;
        let others = self.others(index);
        let command = {
            let user = lock(&world.users[index]);
            let mut rng = SmallRng::seed_from_u64(planned.draw);
            task.command(&user, &others, &mut rng)
        };
        world.blame(kind);
        let flying = world.count.errors_in_flight.fetch_add(1, SeqCst) + 1;
        world.count.most_errors_in_flight.fetch_max(flying, SeqCst);
        let made = self.with_users(index, command, Some(arm), |this, user, effect, struck| {
            this.struck(user, effect, &struck, kind, arm)
        });
        world.count.errors_in_flight.fetch_sub(1, SeqCst);
        match made? {
            Made::Yes => {}
            Made::No => drop(world.count.not_reached.fetch_add(1, SeqCst)),
            Made::Broken(life, _) => self.cut_off(life, kind),
        }
        if arm.error == "stray" {
            self.look_at_vault(arm.parameter)?;
        }
        Ok(())
    }

    /// An error's request had no answer. Another one's error ended the server, or this one did: then
    /// it is a crash.
    fn cut_off(&self, life: usize, kind: &'static Kind) {
        let world = self.world;
        let explained = world.with_life(life, |life| life.ending.is_some() || life.damaged);
        if explained {
            world.count.cut_off.fetch_add(1, SeqCst);
        } else {
            world.with_life(life, |life| life.suspects.push(kind.name));
            world.count.injected.fetch_add(1, SeqCst);
        }
    }

    /// The error was made, and the request answered: finds out what became of it.
    fn struck(
        &mut self,
        user: &mut User,
        effect: Effect,
        struck: &Struck<'_>,
        kind: &'static Kind,
        arm: Arm,
    ) -> Result<(), Over> {
        let world = self.world;
        let reply = Reply::parse(struck.line);
        let failed = matches!(reply, Ok(Reply::Failed(_)));
        let answer_right =
            matches!(&reply, Ok(Reply::Answer(line)) if effect.expected.matches(line));
        let must_be = match failed {
            true => user.dump(),
            false => effect.user.dump(),
        };
        let found = self.read_back(user)?;
        let state_right = found
            .as_ref()
            .is_some_and(|found| world.same(&must_be, found));
        let class = classify(Seen {
            failed,
            answer_right,
            state_right,
            stopped: struck.strike.stopped,
        });
        let detector = match &reply {
            Ok(Reply::Failed(failure)) => Some(detector(&failure.kind).to_owned()),
            _ => None,
        };
        world.made(kind, class, detector.as_deref());
        let right = class == Class::RequestLost || (answer_right && state_right);
        let hidden = !failed && HIDDEN.contains(&arm.error);
        // Wrong texts are the user's own from here on, and good to go on with.
        let taken = match (&found, failed || hidden || !answer_right) {
            (Some(found), false) => effect.user.with_texts_of(found),
            _ => None,
        };
        if let (Some(taken), false) = (taken, right) {
            world.add(effect.change);
            *user = taken;
            return Ok(());
        }
        if right && !failed {
            world.add(effect.change);
            *user = effect.user;
        } else if !right || matches!(struck.command, Command::Directory) {
            // Listings are committed when the directory is left, whatever comes later.
            world.add_maybe(struck.command);
        }
        if class == Class::OthersHarmed {
            world.complain(format!(
                "{} ({arm:?}), {} {}: answered {:?}, state {:?}, must be {must_be:?}",
                kind.name,
                user.name,
                struck.command,
                String::from_utf8_lossy(struck.line),
                found.as_deref().map(String::from_utf8_lossy),
            ));
        }
        if !right || hidden {
            self.retire(user)?;
        }
        Ok(())
    }

    /// Sends a request that reaches a bug of the server.
    fn bug(&mut self, index: usize, kind: &'static Kind, command: &Command) -> Result<(), Over> {
        let world = self.world;
        let mut user = lock(&world.users[index]);
        self.choose(&user)?;
        world.blame(kind);
        let flying = world.count.errors_in_flight.fetch_add(1, SeqCst) + 1;
        world.count.most_errors_in_flight.fetch_max(flying, SeqCst);
        let life = self.life;
        let answer = self.ask(None, &command.to_string());
        world.count.errors_in_flight.fetch_sub(1, SeqCst);
        let Ok(answer) = answer? else {
            let before = user.dump();
            let found = self.read_back(&user)?;
            if found.as_deref() != Some(before.as_bytes()) {
                world.commit_lost(format!("{} after {command}", user.name));
                self.retire(&mut user)?;
            }
            self.cut_off(life, kind);
            return Ok(());
        };
        let reply = Reply::parse(&answer.line);
        let found = self.read_back(&user)?;
        let seen = Seen {
            failed: matches!(reply, Ok(Reply::Failed(_))),
            answer_right: false,
            state_right: found
                .as_ref()
                .is_some_and(|found| world.same(&user.dump(), found)),
            stopped: false,
        };
        let class = classify(seen);
        let noticed = match &reply {
            Ok(Reply::Failed(failure)) => Some(detector(&failure.kind).to_owned()),
            _ => None,
        };
        world.made(kind, class, noticed.as_deref());
        if class != Class::RequestLost {
            world.complain(format!(
                "{}: {} {:?}, state {:?}, must be {:?}",
                kind.name,
                user.name,
                String::from_utf8_lossy(&answer.line),
                found.as_deref().map(String::from_utf8_lossy),
                user.dump()
            ));
            world.add_maybe(command);
            self.retire(&mut user)?;
        }
        Ok(())
    }

    /// Makes an error in the making of a user. If it fails, there is no such user.
    fn new_user(&mut self, kind: &'static Kind, arm: Arm) -> Result<(), Over> {
        let world = self.world;
        let user = self.name();
        world.blame(kind);
        lock(&world.strangers).push(user.name.clone());
        self.chosen = None;
        self.connect()?;
        let Ok(answer) = self.ask(Some(arm), &format!("USER {}", user.name))? else {
            let life = self.life;
            self.cut_off(life, kind);
            return Ok(());
        };
        if !answer.strike.is_some_and(|strike| strike.fired) {
            world.count.not_reached.fetch_add(1, SeqCst);
            return Ok(());
        }
        let reply = Reply::parse(&answer.line);
        let failed = matches!(reply, Ok(Reply::Failed(_)));
        let must_be = match failed {
            true => "NO user".to_owned(),
            false => user.dump(),
        };
        let Ok(found) = self.ask_wild("READ")? else {
            let life = self.life;
            self.cut_off(life, kind);
            return Ok(());
        };
        let seen = Seen {
            failed,
            answer_right: answer.line == format!("OK user={}", user.name).as_bytes(),
            state_right: found
                .as_ref()
                .is_some_and(|found| world.same(&must_be, found)),
            stopped: false,
        };
        let noticed = match &reply {
            Ok(Reply::Failed(failure)) => Some(detector(&failure.kind).to_owned()),
            _ => None,
        };
        let class = classify(seen);
        world.made(kind, class, noticed.as_deref());
        if class == Class::OthersHarmed {
            world.complain(format!(
                "{}: the user is there, but was answered {:?}: {:?}",
                kind.name,
                String::from_utf8_lossy(&answer.line),
                found.as_deref().map(String::from_utf8_lossy)
            ));
        }
        Ok(())
    }

    /// Makes an error that ends the server, or may.
    fn ending(
        &mut self,
        index: usize,
        planned: &Planned,
        arm: Arm,
        task: Task,
    ) -> Result<(), Over> {
        let world = self.world;
        let kind = planned.kind;
        if !world.options.injector {
            return Ok(());
        }
        let _ending = lock(&world.ending);
        if kind.fate == Fate::Panics {
            // Waits until no answer is under way that would not wait for its seal. One that does
            // then shows that everything before it is sealed as well: commits are sealed in order.
            *world
                .sealing
                .write()
                .unwrap_or_else(PoisonError::into_inner) = true;
            self.ordinary(index, Command::Deposit(1))?;
        }
        let result = self.end(index, planned, arm, task);
        if kind.fate == Fate::Panics {
            *world
                .sealing
                .write()
                .unwrap_or_else(PoisonError::into_inner) = false;
        }
        result
    }

    fn end(&mut self, index: usize, planned: &Planned, arm: Arm, task: Task) -> Result<(), Over> {
        let world = self.world;
        let kind = planned.kind;
        // The connection may be one to a server that has ended since: an answer shows that it is not.
        // From here on nobody else ends the server.
        loop {
            self.choose(&lock(&world.users[index]))?;
            if self.ask(None, "PING")?.is_ok() {
                break;
            }
        }
        let life = self.life;
        world.with_life(life, |life| life.ending = Some(kind));
        world.blame(kind);
        let others = self.others(index);
        let command = {
            let user = lock(&world.users[index]);
            let mut rng = SmallRng::seed_from_u64(planned.draw);
            task.command(&user, &others, &mut rng)
        };
        let sent = Instant::now();
        let lost_before = world.count.commits_lost.load(SeqCst);
        let made = self.with_users(index, command, Some(arm), |this, user, effect, struck| {
            this.struck(user, effect, &struck, kind, arm)
        })?;
        match made {
            Made::Broken(_, side) => {
                // Clients notice the end of a guest only when the next one answers.
                world.with_life(life, |life| life.broken = Some(sent));
                let committed = arm.point == Point::Committed;
                let whole = match side {
                    Side::After => committed || arm.point == Point::Moment,
                    Side::Before => !committed,
                    Side::Neither => false,
                };
                if !whole && kind.fate != Fate::Untagged {
                    world.commit_lost(format!("{} at {arm:?}: the state is {side:?}", kind.name));
                }
                let class = match world.count.commits_lost.load(SeqCst) == lost_before {
                    true => Class::Restarted,
                    false => Class::OthersHarmed,
                };
                world.made(kind, class, None);
            }
            Made::Yes if kind.fate == Fate::Untagged => {
                // Alive, but nobody can tell for how long: a supervisor starts it anew.
                world.with_life(life, |life| life.damaged = true);
                let kill = Arm {
                    point: Point::Start,
                    count: 1,
                    error: "kill",
                    ..arm
                };
                // It may have ended by itself: then this is a connection to another one, or none.
                if self.life == life {
                    let _gone = self.ask(Some(kill), "READ")?;
                    self.client = None;
                }
            }
            Made::Yes | Made::No => {
                world.count.not_reached.fetch_add(1, SeqCst);
                world.with_life(life, |life| {
                    // Whoever ended it meanwhile, it was not this.
                    if life.broken.is_none() {
                        life.ending = None;
                    }
                });
            }
        }
        Ok(())
    }

    /// Flips a bit in a sealed frame of a domain with a mirror, and has the host look for it.
    fn flip(&mut self, kind: &'static Kind, number: u64) -> Result<(), Over> {
        let world = self.world;
        let (Some(host), true) = (&world.options.host, world.options.injector) else {
            return Ok(());
        };
        let _flipping = lock(&world.flipping);
        let user = &world.mirrors[(number % world.mirrors.len() as u64) as usize];
        let Some(note) = user.notes.first() else {
            return Ok(());
        };
        world.blame(kind);
        let scrubbed = match host.flip(note.text.as_bytes(), number) {
            Ok(true) => host.scrub(&user.name),
            Ok(false) => {
                world.count.not_reached.fetch_add(1, SeqCst);
                return Ok(());
            }
            Err(error) => Err(error),
        };
        let found = self.read_back(user)?;
        let right = found
            .as_ref()
            .is_some_and(|found| world.same(&user.dump(), found));
        let class = match (&scrubbed, right) {
            (Ok(()), true) => Class::RecoveredRight,
            _ => Class::OthersHarmed,
        };
        world.made(kind, class, Some("checksum"));
        if class == Class::OthersHarmed {
            world.complain(format!(
                "{}: {} {scrubbed:?}: found {:?}, must be {:?}",
                kind.name,
                user.name,
                found.as_deref().map(String::from_utf8_lossy),
                user.dump()
            ));
        }
        Ok(())
    }

    // ---- State --------------------------------------------------------------------------------

    /// Finds out after the death of the server whether a request was committed: its users' states
    /// are all those before it or all those after it. A request with changed code (`mutated`) may
    /// also have committed wrong data of its own user.
    fn settle(
        &mut self,
        user: &mut User,
        receiver: Option<&mut User>,
        (effect, command): (&Effect, &Command),
        mutated: bool,
    ) -> Result<Side, Over> {
        let world = self.world;
        let (before, after) = (user.dump(), effect.user.dump());
        let found = self.read_back(user)?;
        let side = match &found {
            Some(found) if world.same(&before, found) => Side::Before,
            Some(found) if world.same(&after, found) => Side::After,
            _ => Side::Neither,
        };
        if matches!(command, Command::Directory) {
            world.add_maybe(command);
        }
        if side == Side::After {
            world.add(effect.change);
            *user = effect.user.clone();
        }
        if side == Side::Neither {
            if !mutated {
                world.commit_lost(format!(
                    "{} after the death in {command}: found {:?}, must be {before:?} or {after:?}",
                    user.name,
                    found.as_deref().map(String::from_utf8_lossy)
                ));
            }
            world.add_maybe(command);
            self.retire(user)?;
        }
        if let (Some(receiver), Some(after)) = (receiver, &effect.receiver) {
            if side == Side::After {
                *receiver = after.clone();
            }
            let found = self.read_back(receiver)?;
            if found.as_deref() != Some(receiver.dump().as_bytes()) {
                world.commit_lost(format!(
                    "{}, receiver of {command} ({side:?}): found {:?}, must be {:?}",
                    receiver.name,
                    found.as_deref().map(String::from_utf8_lossy),
                    receiver.dump()
                ));
                self.retire(receiver)?;
            }
        }
        Ok(side)
    }

    /// The state of a user; nothing if it cannot be read or is no line.
    fn read_back(&mut self, user: &User) -> Result<Option<Vec<u8>>, Over> {
        loop {
            self.choose(user)?;
            if let Ok(found) = self.ask_wild("READ")? {
                return Ok(found);
            }
        }
    }

    /// Reads all of this connection's users back, after the server was started anew.
    fn audit(&mut self) -> Result<(), Over> {
        let world = self.world;
        for index in self.own.clone() {
            let mut user = lock(&world.users[index]);
            let found = self.read_back(&user)?;
            if found.as_deref() != Some(user.dump().as_bytes()) {
                world.commit_lost(format!(
                    "{} after the death of the server: found {:?}, must be {:?}",
                    user.name,
                    found.as_deref().map(String::from_utf8_lossy),
                    user.dump()
                ));
                self.retire(&mut user)?;
            }
        }
        Ok(())
    }

    /// A user whom nobody may change must be as ever.
    fn look_at_vault(&mut self, number: u64) -> Result<(), Over> {
        let world = self.world;
        let vault = &world.vaults[(number % world.vaults.len() as u64) as usize];
        let found = self.read_back(vault)?;
        if found.as_deref() != Some(vault.dump().as_bytes()) {
            world.harm(format!(
                "{}: found {:?}, must be {:?}",
                vault.name,
                found.as_deref().map(String::from_utf8_lossy),
                vault.dump()
            ));
        }
        Ok(())
    }

    /// Puts a new user in the place of one whose data are wrong.
    fn retire(&mut self, user: &mut User) -> Result<(), Over> {
        let dump = self.read_back(user)?;
        let new = self.name();
        lock(&self.world.retired).push(Retired {
            name: user.name.clone(),
            dump: dump.filter(|dump| dump.starts_with(b"OK ")),
        });
        *user = new;
        self.choose(user)
    }

    fn name(&mut self) -> User {
        self.made += 1;
        User::new(format!("new{}-{}", self.connection, self.made))
    }

    // ---- The connection -----------------------------------------------------------------------

    /// Makes the connection one of this user, and the user if he does not exist.
    fn choose(&mut self, user: &User) -> Result<(), Over> {
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

    /// Sends a line whose answer may have line ends in it: nothing if it had.
    fn ask_wild(&mut self, line: &str) -> Result<Result<Option<Vec<u8>>, Broken>, Over> {
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
    fn ask(&mut self, arm: Option<Arm>, line: &str) -> Result<Result<Answer, Broken>, Over> {
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
        match answer {
            Ok(line) => Ok(Ok(Answer { strike, line })),
            Err(error) => self.broken(&error, &text).map(Err),
        }
    }

    fn receive(&mut self) -> Result<Result<Vec<u8>, Broken>, Over> {
        let Some(client) = &mut self.client else {
            return Ok(Err(Broken));
        };
        match client.receive() {
            Ok(line) => Ok(Ok(line)),
            Err(error) => self.broken(&error, "(the rest of an answer)").map(Err),
        }
    }

    fn broken(&mut self, error: &io::Error, line: &str) -> Result<Broken, Over> {
        let world = self.world;
        self.client = None;
        self.chosen = None;
        let timeout = matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        );
        // A guest that is being booted anew does not even close its connections.
        let away = world.with_life(self.life, |life| {
            life.broken.get_or_insert_with(Instant::now);
            life.ending.is_some_and(|kind| kind.fate == Fate::Panics)
        });
        if timeout && !away {
            world.hang(format!(
                "connection {}: no answer to {line:?}",
                self.connection
            ));
            return Err(Over);
        }
        Ok(Broken)
    }

    /// Connects, if there is no connection, to a server that may be away for a while.
    fn connect(&mut self) -> Result<(), Over> {
        let world = self.world;
        let start = Instant::now();
        while self.client.is_none() {
            if world.over.load(SeqCst) {
                return Err(Over);
            }
            let options = world.options;
            let connected =
                Client::connect(options.address, options.reply_timeout).and_then(|mut client| {
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

    /// Reads everything back once in each life of the server.
    fn audit_if_due(&mut self) -> Result<(), Over> {
        while self.audited != self.life {
            self.audited = self.life;
            self.audit()?;
        }
        Ok(())
    }
}

/// What became of a request.
#[derive(Debug, Clone, Copy)]
enum Made {
    /// It was answered, and the error was made.
    Yes,
    /// It was answered, and there was no error.
    No,
    /// The server of this life went away.
    Broken(usize, Side),
}

/// A request in which the error was made.
struct Struck<'a> {
    command: &'a Command,
    strike: Strike,
    line: &'a [u8],
}
