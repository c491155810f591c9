//! One connection: ordinary requests and errors, and the checks after each.
//!
//! A request is sent while the models of the users that it involves are locked, so the models give the exact answer.
//! When the server ends during a request, the users' states show whether it was committed: completely or not at all.

mod connection;
mod ending;
mod error;
mod request;
mod state;

use std::sync::PoisonError;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use vmsrs_bed::vault;
use vmsrs_ledger::client::Client;
use vmsrs_ledger::command::Command;
use vmsrs_ledger::model::{DirectoryChange, Expected, User};
use vmsrs_ledger::plan::Plan as Load;
use vmsrs_ledger::users::lock;

use crate::arm::Strike;
use crate::plan::{Means, Plan, Planned};
use crate::task::Task;
use crate::world::{Over, World};

/// The connection is gone, and with it the answer.
#[derive(Debug, Clone, Copy)]
struct Broken;

/// An answer, and the injector's report before it.
struct Answer {
    strike: Option<Strike>,
    line: Vec<u8>,
}

/// The effect of a request that succeeds.
struct Effect {
    expected: Expected,
    change: DirectoryChange,
    user: User,
    receiver: Option<User>,
}

/// Whether a state is that before or after a request.
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
    /// The last life in which the users were read back.
    audited: usize,
    plan: Plan,
    load: Load,
    /// Indices of its users.
    own: Vec<usize>,
    /// Index in `own` of the user of the next request.
    current: usize,
    /// The user that was selected with `USER`.
    chosen: Option<String>,
    /// Replacements of users so far.
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
                .with_restarts(options.restarts)
                .with_only(&options.only)
                .with_poison(vault::may_poison()),
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
                world.complain("the run was abandoned: it took too long".to_owned());
            }
            let planned = self.plan.error(number);
            if self.compare_if_due().is_err() {
                return;
            }
            let _round = world.rounds.read().unwrap_or_else(PoisonError::into_inner);
            if self.round(&planned).is_err() {
                return;
            }
        }
    }

    /// Sends some ordinary requests and makes an error.
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
            Means::Memory(harm, number) => self.memory(planned.kind, harm, number),
            Means::Arm(arm, Task::NewUser) => self.new_user(planned.kind, arm),
            Means::Arm(arm, task) if planned.kind.ends_nothing() => {
                self.error(index, planned, arm, task)
            }
            Means::Arm(arm, task) => self.ending(index, planned, arm, task),
        }
    }

    /// The request of a planned error, for the current state of the user.
    fn draw(&self, index: usize, planned: &Planned, task: Task) -> Command {
        let others = self.others(index);
        let user = lock(&self.world.users[index]);
        let mut rng = SmallRng::seed_from_u64(planned.draw);
        task.command(&user, &others, &mut rng)
    }

    /// The possible receivers of money.
    fn others(&self, index: usize) -> Vec<(usize, String)> {
        // Names are filled in when the receiver is locked.
        (0..self.world.users.len())
            .filter(|other| *other != index)
            .map(|other| (other, String::new()))
            .collect()
    }
}

/// Whether an error was made.
#[derive(Debug, Clone, Copy)]
enum Made {
    /// The request was answered, and the error was made.
    Yes,
    /// The request was answered without the error.
    No,
    /// This life of the server ended.
    Broken(usize, Side),
}

/// A request in which the error was made.
struct Struck<'a> {
    command: &'a Command,
    strike: Strike,
    line: &'a [u8],
    receiver: Option<&'a mut User>,
}
