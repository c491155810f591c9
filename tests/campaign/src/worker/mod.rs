//! One connection: ordinary requests, errors among them, and what each must leave behind.
//!
//! A request is sent while the model of the users that it touches is locked, so the model knows
//! exactly what the answer must be. When the server goes away with a request under way, the users'
//! states tell whether the request was committed: wholly or not at all.

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
use vmsrs_bed::window;
use vmsrs_ledger::client::Client;
use vmsrs_ledger::command::Command;
use vmsrs_ledger::model::{DirectoryChange, Expected, User};
use vmsrs_ledger::plan::Plan as Load;
use vmsrs_ledger::users::lock;

use crate::arm::Strike;
use crate::kind::Fate;
use crate::plan::{Means, Plan, Planned};
use crate::task::Task;
use crate::world::{Over, World};

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
                .with_restarts(options.restarts)
                .with_only(options.only)
                .with_poison(window::may_poison()),
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
            if self.compare_if_due().is_err() {
                return;
            }
            let _round = world.rounds.read().unwrap_or_else(PoisonError::into_inner);
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
            Means::Memory(harm, number) => self.memory(planned.kind, harm, number),
            Means::Arm(arm, Task::NewUser) => self.new_user(planned.kind, arm),
            Means::Arm(arm, task) => match planned.kind.fate {
                Fate::Detected | Fate::OwnDamage => self.error(index, planned, arm, task),
                Fate::Kills | Fate::Panics | Fate::Untagged => {
                    self.ending(index, planned, arm, task)
                }
            },
        }
    }

    /// The request of a planned error, for the user as he is now.
    fn draw(&self, index: usize, planned: &Planned, task: Task) -> Command {
        let others = self.others(index);
        let user = lock(&self.world.users[index]);
        let mut rng = SmallRng::seed_from_u64(planned.draw);
        task.command(&user, &others, &mut rng)
    }

    /// The users that money may go to.
    fn others(&self, index: usize) -> Vec<(usize, String)> {
        // Names are filled in when the receiver is locked.
        (0..self.world.users.len())
            .filter(|other| *other != index)
            .map(|other| (other, String::new()))
            .collect()
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
    receiver: Option<&'a mut User>,
}
