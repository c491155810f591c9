//! Errors that cost only their own request.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::SeqCst;

use vmsrs_ledger::command::Command;
use vmsrs_ledger::model::User;
use vmsrs_ledger::reply::{Failure, Reply};
use vmsrs_ledger::users::lock;

use super::{Effect, Made, Struck, Worker};
use crate::arm::{Arm, Strike};
use crate::class::{Class, Seen, classify};
use crate::host::{Harm, Scrubs};
use crate::kind::{Fate, Kind};
use crate::plan::Planned;
use crate::task::Task;
use crate::world::Over;

/// Errors whose damage may stay hidden in the heap of the user's own domain.
const HIDDEN: [&str; 5] = ["shorten", "early-free", "flip", "dirty", "elsewhere"];

impl Worker<'_> {
    /// Makes an error in a request that must have an answer.
    pub(super) fn error(
        &mut self,
        index: usize,
        planned: &Planned,
        arm: Arm,
        task: Task,
    ) -> Result<(), Over> {
        let world = self.world;
        let kind = planned.kind;
        let command = self.draw(index, planned, task);
        let _judged = world.quiet.read().unwrap_or_else(PoisonError::into_inner);
        world.blame(kind);
        let made = world.in_flight(|| {
            self.with_users(index, command, Some(arm), |this, user, effect, struck| {
                this.struck(user, effect, struck, kind, arm)
            })
        });
        match made? {
            Made::Yes => {}
            Made::No => drop(world.count.not_reached.fetch_add(1, SeqCst)),
            Made::Broken(life, _) => self.cut_off(life, kind),
        }
        if arm.error == "stray" {
            self.look_at_target(arm.parameter)?;
        }
        if kind.stays_on_thread() {
            self.end_thread(index)?;
        }
        Ok(())
    }

    /// Has the connection's thread serve another user, and then end.
    fn end_thread(&mut self, index: usize) -> Result<(), Over> {
        let other = self.own.iter().copied().find(|other| *other != index);
        self.ordinary(other.unwrap_or(index), Command::Deposit(1))?;
        self.client = None;
        self.chosen = None;
        Ok(())
    }

    /// An error's request had no answer, so it is unknown whether the error was made. Either another error ended the
    /// server, or this one did: then it is a crash, and this error is a suspect.
    pub(super) fn cut_off(&self, life: usize, kind: &'static Kind) {
        let world = self.world;
        world.with_life(life, |life| life.suspects.push(kind.name));
        world.count.cut_off.fetch_add(1, SeqCst);
    }

    /// Judges an error that was made in a request with an answer.
    pub(super) fn struck(
        &mut self,
        user: &mut User,
        mut effect: Effect,
        struck: Struck<'_>,
        kind: &'static Kind,
        arm: Arm,
    ) -> Result<(), Over> {
        let world = self.world;
        let reply = Reply::parse(struck.line);
        let failure = reply.as_ref().ok().and_then(Reply::failure);
        let failed = failure.is_some();
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
        let detector = failure.map(Failure::detector);
        let overdue = detector == Some("deadline") && !kind.is_endless();
        if overdue {
            world.complain(format!(
                "hang: {} ({arm:?}), {} {} was ended by its deadline",
                kind.name, user.name, struck.command
            ));
        }
        let counted = if overdue { Class::Hang } else { class };
        self.count(kind, arm, &struck.strike, (counted, detector));
        let right = class == Class::RequestLost || (answer_right && state_right);
        if let (Some(receiver), Some(after)) = (struck.receiver, effect.receiver.take()) {
            if right && !failed {
                *receiver = after;
            }
            self.is_unharmed(receiver)?;
        }
        let hidden = !failed && HIDDEN.contains(&arm.error);
        // Wrong texts become the user's own, which can still be used.
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
            // Listings are committed when the directory is left, even if the request fails later.
            world.add_maybe(struck.command);
        }
        let unexpected = class == Class::RecoveredWrongAnswer && kind.fate == Fate::Harmless;
        if class == Class::OthersHarmed || unexpected {
            world.complain(format!(
                "{} ({arm:?}), {} {}: answered {:?}, state {:?}, expected {must_be:?}",
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

    /// Counts an error that the injector has made. What it leaves behind on its thread, the next request there finds.
    fn count(
        &self,
        kind: &'static Kind,
        arm: Arm,
        strike: &Strike,
        (class, detector): (Class, Option<&str>),
    ) {
        let Some(left) = &strike.left else {
            return self.world.made(kind, class, detector);
        };
        self.world.made(kind, Class::OthersHarmed, detector);
        self.world.complain(format!(
            "{} ({arm:?}): left behind on its thread: {left}",
            kind.name
        ));
    }

    /// Sends a request that reaches a bug of the server.
    pub(super) fn bug(
        &mut self,
        index: usize,
        kind: &'static Kind,
        command: &Command,
    ) -> Result<(), Over> {
        let world = self.world;
        let _judged = world.quiet.read().unwrap_or_else(PoisonError::into_inner);
        let mut user = lock(&world.users[index]);
        self.choose(&user)?;
        world.blame(kind);
        let life = self.life;
        let answer = world.in_flight(|| self.ask(None, &command.to_string()));
        let Ok(answer) = answer? else {
            // It may have failed first.
            lock(&world.failures).uncertain();
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
        let failure = reply.as_ref().ok().and_then(Reply::failure);
        let found = self.read_back(&user)?;
        let seen = Seen {
            failed: failure.is_some(),
            answer_right: false,
            state_right: found
                .as_ref()
                .is_some_and(|found| world.same(&user.dump(), found)),
            stopped: false,
        };
        let class = classify(seen);
        let noticed = failure.map(Failure::detector);
        world.made(kind, class, noticed);
        if class != Class::RequestLost {
            world.complain(format!(
                "{}: {} {:?}, state {:?}, expected {:?}",
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

    /// Makes an error in the creation of a user, which does not exist if that fails.
    pub(super) fn new_user(&mut self, kind: &'static Kind, arm: Arm) -> Result<(), Over> {
        let world = self.world;
        let _judged = world.quiet.read().unwrap_or_else(PoisonError::into_inner);
        let user = self.name();
        world.blame(kind);
        lock(&world.strangers).push(user.name.clone());
        self.chosen = None;
        self.connect()?;
        let life = self.life;
        let Ok(answer) = self.ask(Some(arm), &format!("USER {}", user.name))? else {
            self.cut_off(life, kind);
            return Ok(());
        };
        let Some(strike) = answer.strike.as_ref().filter(|strike| strike.fired) else {
            world.count.not_reached.fetch_add(1, SeqCst);
            if answer.line != format!("OK user={}", user.name).as_bytes() {
                world.harm(format!(
                    "USER {}, without its error: {}",
                    user.name,
                    String::from_utf8_lossy(&answer.line)
                ));
            }
            return Ok(());
        };
        let reply = Reply::parse(&answer.line);
        let failure = reply.as_ref().ok().and_then(Reply::failure);
        let failed = failure.is_some();
        let must_be = match failed {
            true => "NO user".to_owned(),
            false => user.dump(),
        };
        let Ok(found) = self.ask_wild("READ")? else {
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
        let noticed = failure.map(Failure::detector);
        let class = classify(seen);
        self.count(kind, arm, strike, (class, noticed));
        if class == Class::OthersHarmed {
            world.complain(format!(
                "{}: the user exists, but was answered {:?}: {:?}",
                kind.name,
                String::from_utf8_lossy(&answer.line),
                found.as_deref().map(String::from_utf8_lossy)
            ));
        }
        Ok(())
    }

    /// Corrupts a sealed frame of a domain with a mirror in the host's memory, and has the host look for it.
    pub(super) fn memory(
        &mut self,
        kind: &'static Kind,
        harm: Harm,
        number: u64,
    ) -> Result<(), Over> {
        let world = self.world;
        let (Some(host), true) = (&world.options.host, world.options.injector) else {
            return Ok(());
        };
        let _damaging = lock(&world.damaging);
        let user = &world.mirrors[(number % world.mirrors.len() as u64) as usize];
        let Some(note) = user.notes.first() else {
            return Ok(());
        };
        world.blame(kind);
        let mut met = Ok(None);
        // The host may find it before it is told to look, so its counts are the evidence.
        let scrubbed = host.scrubs().and_then(|before| {
            if !host.harm(harm, note.text.as_bytes(), number)? {
                return Ok(None);
            }
            // Reading a flipped bit would give wrong data, but broken memory may be accessed by the guest first.
            if harm == Harm::Poison && number & 0x80 == 0 {
                met = self.read_back(user).map(Some);
            }
            host.scrub(&user.name)?;
            Ok(Some(host.scrubs()?.since(before)))
        });
        let must_be = user.dump();
        let right = |found: &Vec<u8>| world.same(&must_be, found);
        let met = met?;
        let found = self.read_back(user)?;
        let right = |found: &Option<Vec<u8>>| found.as_ref().is_some_and(right);
        let right = met.as_ref().is_none_or(right) && right(&found);
        if right && matches!(scrubbed, Ok(None)) {
            world.count.not_reached.fetch_add(1, SeqCst);
            return Ok(());
        }
        let detector = scrubbed
            .as_ref()
            .ok()
            .copied()
            .flatten()
            .and_then(Scrubs::detector);
        let class = match (&scrubbed, right) {
            (Ok(_), true) if detector.is_some() => Class::RecoveredRight,
            (Ok(_), true) => Class::NoEffect,
            _ => Class::OthersHarmed,
        };
        world.made(kind, class, detector);
        if class == Class::OthersHarmed {
            world.complain(format!(
                "{}: {} {scrubbed:?}: met {:?}, found {:?}, expected {must_be:?}",
                kind.name,
                user.name,
                met.flatten().as_deref().map(String::from_utf8_lossy),
                found.as_deref().map(String::from_utf8_lossy),
            ));
        }
        Ok(())
    }
}
