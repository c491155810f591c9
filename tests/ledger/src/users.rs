//! The models of all users, shared by the connections.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::client::Client;
use crate::command::Command;
use crate::model::{DirectoryChange, User};

/// Fewer users than connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{users} users cannot be spread over {connections} connections; each connection needs at least one user"
)]
pub struct TooFewUsers {
    /// The requested users.
    pub users: usize,
    /// The requested connections.
    pub connections: usize,
}

/// Checks that each connection has a user, and that there is a connection.
///
/// # Errors
///
/// [`TooFewUsers`] if not.
pub fn check_spread(users: usize, connections: usize) -> Result<(), TooFewUsers> {
    match connections == 0 || users < connections {
        true => Err(TooFewUsers { users, connections }),
        false => Ok(()),
    }
}

/// Locks a mutex, also one that a panicking thread has poisoned.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The locked models of the users that a request involves.
pub type Touched<'a> = (MutexGuard<'a, User>, Option<MutexGuard<'a, User>>);

/// Locks the model of user `index` and, for a transfer, that of the receiver: in order of index, so that no two
/// connections wait for each other.
pub fn lock_touched<'a>(users: &'a [Mutex<User>], index: usize, command: &Command) -> Touched<'a> {
    let receiver = match command {
        Command::Transfer { receiver, .. } => Some(*receiver),
        _ => None,
    };
    let early = receiver
        .filter(|receiver| *receiver < index)
        .map(|receiver| lock(&users[receiver]));
    let user = lock(&users[index]);
    let receiver = early.or_else(|| Some(lock(&users[receiver?])));
    (user, receiver)
}

/// Creates a user on the server with some state to lose; returns what that changes in the directory.
///
/// # Errors
///
/// When the connection is lost, or an answer differs from the model's.
pub fn create(client: &mut Client, user: &mut User) -> io::Result<DirectoryChange> {
    let mut total = DirectoryChange::default();
    for command in [
        Command::User(user.name.clone()),
        // Fails on a user of an earlier run, whose state the model does not know.
        Command::Read,
        Command::Deposit(1000),
        Command::NoteAdd(format!("a first note of {}", user.name)),
    ] {
        let reply = client.ask(&command.to_string())?;
        let (expected, change) = user.apply(&command, None);
        total += change;
        if !expected.matches(&reply) {
            return Err(io::Error::other(format!(
                "{command} was answered with {}",
                String::from_utf8_lossy(&reply)
            )));
        }
    }
    Ok(total)
}

/// The answer to `READ` for a user.
///
/// # Errors
///
/// When the connection is lost.
pub fn read(client: &mut Client, name: &str) -> io::Result<Vec<u8>> {
    client.ask(&Command::User(name.to_owned()).to_string())?;
    client.ask(&Command::Read.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_locks_both_users_and_nothing_else() {
        let users: Vec<_> = (0..3).map(|_| Mutex::new(User::default())).collect();
        for (index, receiver) in [(0, 2), (2, 0)] {
            let transfer = Command::Transfer {
                receiver,
                name: String::new(),
                amount: 1,
            };
            let (_user, other) = lock_touched(&users, index, &transfer);
            assert!(other.is_some());
            let free = |number: usize| users[number].try_lock().is_ok();
            assert_eq!([free(0), free(1), free(2)], [false, true, false]);
        }
        let (_user, other) = lock_touched(&users, 1, &Command::Read);
        assert!(other.is_none());
    }
}
