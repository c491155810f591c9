//! Errors that end, or may end, the server or the guest.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use vmsrs_ledger::command::Command;
use vmsrs_ledger::users::lock;

use super::{Made, Side, Worker};
use crate::arm::{Arm, Point};
use crate::class::Class;
use crate::kind::Fate;
use crate::plan::Planned;
use crate::task::Task;
use crate::world::Over;

impl Worker<'_> {
    /// Makes an error that ends, or may end, the server.
    pub(super) fn ending(
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
        // Nothing else may end the process until it has been judged.
        let _quiet = (kind.fate == Fate::Untagged)
            .then(|| world.quiet.write().unwrap_or_else(PoisonError::into_inner));
        if kind.fate == Fate::Panics {
            // Waits until all answers in flight wait for their seals. Commits are sealed in order: the next answer
            // shows that all earlier ones are sealed.
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

    pub(super) fn end(
        &mut self,
        index: usize,
        planned: &Planned,
        arm: Arm,
        task: Task,
    ) -> Result<(), Over> {
        let world = self.world;
        let kind = planned.kind;
        // An answer shows that this server is still running; from here on nothing else ends it.
        loop {
            self.choose(&lock(&world.users[index]))?;
            if self.ask(None, "PING")?.is_ok() {
                break;
            }
        }
        let life = self.life;
        world.with_life(life, |life| life.ending = Some(kind));
        world.blame(kind);
        let command = self.draw(index, planned, task);
        let sent = Instant::now();
        let lost_before = world.count.commits_lost.load(SeqCst);
        let made = self.with_users(index, command, Some(arm), |this, user, effect, struck| {
            if kind.fate == Fate::Untagged {
                // It may fail at any time: the supervisor replaces it.
                let life = this.life;
                this.replace(life)?;
            }
            this.struck(user, effect, struck, kind, arm)
        })?;
        match made {
            Made::Broken(of, side) => {
                if of != life {
                    // It was made in the next life: something else ended the first.
                    world.with_life(life, |life| life.ending = None);
                    world.with_life(of, |life| life.ending = Some(kind));
                }
                let life = of;
                // Clients notice the end of a guest only when the next one is up.
                let lives_on = self.life == life;
                world.with_life(life, |life| {
                    life.broken = Some(sent);
                    life.restarted.push(kind);
                    if lives_on {
                        // Only the connection is gone, which excuses no later end.
                        life.ending = None;
                    }
                });
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
            Made::Yes if kind.fate == Fate::Untagged => {}
            // It did not end the process.
            Made::Yes => world.with_life(life, |life| life.ending = None),
            Made::No => {
                world.count.not_reached.fetch_add(1, SeqCst);
                world.with_life(life, |life| life.ending = None);
            }
        }
        Ok(())
    }

    /// Has the supervisor kill a process with damaged memory outside of domains, unless it has ended already.
    pub(super) fn replace(&mut self, life: usize) -> Result<(), Over> {
        let world = self.world;
        let pid = world.with_life(life, |life| {
            life.damaged = true;
            life.broken.get_or_insert_with(Instant::now);
            life.pid
        });
        self.client = None;
        self.chosen = None;
        let Some(host) = &world.options.host else {
            return Ok(());
        };
        // One of the connections does this for all.
        let _supervisor = lock(&world.supervisor);
        if world.with_life(life, |life| std::mem::replace(&mut life.gone, true)) {
            return Ok(());
        }
        match host.end_process(pid) {
            Ok(true) => world.with_life(life, |life| life.replaced = true),
            // It ended by itself.
            Ok(false) => {}
            Err(error) => {
                world.hang(format!("the supervisor did not kill a process: {error}"));
                return Err(Over);
            }
        }
        Ok(())
    }
}
