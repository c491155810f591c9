//! Users' states, compared with their models.

use std::sync::PoisonError;

use vmsrs_ledger::command::Command;
use vmsrs_ledger::model::User;
use vmsrs_ledger::users::lock;

use super::{Broken, Effect, Side, Worker};
use crate::world::{Over, Retired, World};

impl<'w> Worker<'w> {
    /// Finds out after the death of the server whether a request was committed: its users' states are all those before or
    /// all those after it. A `mutated` request may also have committed wrong data of its own user.
    pub(super) fn settle(
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
                    "{} after the death in {command}: found {:?}, expected {before:?} or {after:?}",
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
            let what = format!(", receiver of {command} ({side:?})");
            self.matches_model(receiver, World::commit_lost, &what)?;
        }
        Ok(side)
    }

    /// The state of a user; `None` if it contains newlines.
    pub(super) fn read_back(&mut self, user: &User) -> Result<Option<Vec<u8>>, Over> {
        loop {
            self.choose(user)?;
            if let Ok(found) = self.ask_wild("READ")? {
                return Ok(found);
            }
        }
    }

    /// Whether a user's state is that of the model. If not, `count` counts the difference and the user is retired.
    fn matches_model(
        &mut self,
        user: &mut User,
        count: fn(&World<'w>, String),
        what: &str,
    ) -> Result<bool, Over> {
        let world = self.world;
        let found = self.read_back(user)?;
        let must_be = user.dump();
        let same = found
            .as_ref()
            .is_some_and(|found| world.same(&must_be, found));
        if !same {
            let words = format!(
                "{}{what}: found {:?}, expected {must_be:?}",
                user.name,
                found.as_deref().map(String::from_utf8_lossy)
            );
            count(world, words);
            self.retire(user)?;
        }
        Ok(same)
    }

    /// Whether a user's state is unchanged since its last request.
    pub(super) fn is_unharmed(&mut self, user: &mut User) -> Result<bool, Over> {
        self.matches_model(user, World::harm, " between two requests")
    }

    /// Reads all of this connection's users back after a restart of the server.
    pub(super) fn audit(&mut self) -> Result<(), Over> {
        let world = self.world;
        for index in self.own.clone() {
            let mut user = lock(&world.users[index]);
            self.matches_model(
                &mut user,
                World::commit_lost,
                " after the death of the server",
            )?;
        }
        Ok(())
    }

    /// Reads the users back once in each life of the server.
    pub(super) fn audit_if_due(&mut self) -> Result<(), Over> {
        while self.audited != self.life {
            self.audited = self.life;
            self.audit()?;
        }
        Ok(())
    }

    /// Compares the directory after each restart of the server and from time to time, while no other request is in flight.
    pub(super) fn compare_if_due(&mut self) -> Result<(), Over> {
        let world = self.world;
        if !world.is_comparison_due() {
            return Ok(());
        }
        // One of the connections does this; the others wait at the start of their next rounds.
        let Ok(_one) = world.comparing.try_lock() else {
            return Ok(());
        };
        let _alone = world.rounds.write().unwrap_or_else(PoisonError::into_inner);
        while world.is_comparison_due() {
            self.choose(&lock(&world.users[self.own[0]]))?;
            match self.ask(None, "DIRECTORY")? {
                Ok(answer) => {
                    let when = format!("in life {} of the server", self.life + 1);
                    world.compare_directory(&answer.line, &when);
                    break;
                }
                Err(Broken) => world.add_maybe(&Command::Directory),
            }
        }
        Ok(())
    }

    /// Checks that a target is unchanged.
    pub(super) fn look_at_target(&mut self, number: u64) -> Result<(), Over> {
        let world = self.world;
        let target = &world.targets[(number % world.targets.len() as u64) as usize];
        let found = self.read_back(target)?;
        if found.as_deref() != Some(target.dump().as_bytes()) {
            world.harm(format!(
                "{}: found {:?}, expected {:?}",
                target.name,
                found.as_deref().map(String::from_utf8_lossy),
                target.dump()
            ));
        }
        Ok(())
    }

    /// Replaces a user with wrong data by a new one.
    pub(super) fn retire(&mut self, user: &mut User) -> Result<(), Over> {
        let dump = self.read_back(user)?;
        let new = self.name();
        lock(&self.world.retired).push(Retired {
            name: user.name.clone(),
            dump: dump.filter(|dump| dump.starts_with(b"OK ")),
        });
        *user = new;
        self.choose(user)
    }

    pub(super) fn name(&mut self) -> User {
        self.made += 1;
        User::new(format!("new{}-{}", self.connection, self.made))
    }
}
