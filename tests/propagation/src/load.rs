//! An ordinary load, one request at a time, with the expected answers.

use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use vmsrs_ledger::command::Command;
use vmsrs_ledger::model::{Expected, User};
use vmsrs_ledger::plan::Plan;

/// The users' requests. Each user has its own connection.
pub struct Load {
    rng: SmallRng,
    users: Vec<User>,
    plans: Vec<Plan>,
}

/// A request to send.
#[derive(Debug)]
pub struct Request {
    /// Number of the user, and of the connection.
    pub user: usize,
    /// The line.
    pub line: String,
    /// The expected answer.
    pub expected: Expected,
}

/// The name of a user.
pub fn name(user: usize) -> String {
    format!("u{user:02}")
}

impl Load {
    /// The load of `users` users.
    pub fn new(seed: u64, users: usize) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(seed),
            users: (0..users).map(|user| User::new(name(user))).collect(),
            plans: (0..users).map(|user| Plan::new(seed, user)).collect(),
        }
    }

    /// The request that creates a user.
    pub fn first(&self, user: usize) -> Request {
        let name = &self.users[user].name;
        Request {
            user,
            line: format!("USER {name}"),
            expected: Expected::Line(format!("OK user={name}")),
        }
    }

    /// The next request, of any user.
    ///
    /// # Errors
    ///
    /// When the plan names an unknown user, which is a bug.
    pub fn next_request(&mut self) -> Result<Request> {
        let user = self.rng.random_range(0..self.users.len());
        let others: Vec<(usize, String)> = self
            .users
            .iter()
            .enumerate()
            .filter(|&(number, _)| number != user)
            .map(|(number, other)| (number, other.name.clone()))
            .collect();
        let step = self.plans[user].next(&self.users[user], &others, false);
        let expected = match step.command {
            Command::Transfer { receiver, .. } => {
                let [sender, receiver] = self
                    .users
                    .get_disjoint_mut([user, receiver])
                    .context("a transfer to an unknown user")?;
                sender.apply(&step.command, Some(receiver)).0
            }
            _ => self.users[user].apply(&step.command, None).0,
        };
        Ok(Request {
            user,
            line: step.command.to_string(),
            expected,
        })
    }

    /// Requests that show the whole state of a user.
    pub fn last(&mut self, user: usize) -> [Request; 2] {
        let entry = self.users[user].entry();
        [
            Request {
                user,
                line: Command::Read.to_string(),
                expected: Expected::Line(self.users[user].dump()),
            },
            Request {
                user,
                line: Command::Directory.to_string(),
                expected: Expected::DirectoryWith(entry),
            },
        ]
    }
}
