//! The requests that errors are made in.

use rand::Rng;
use rand::seq::IteratorRandom;
use vmsrs_ledger::command::Command;
use vmsrs_ledger::model::User;

use crate::arm::Point;

/// A sort of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Adds money.
    Deposit,
    /// Adds a note: two blocks.
    NoteAdd,
    /// Deletes a note: two blocks.
    NoteDelete,
    /// Joins two notes.
    NoteJoin,
    /// Fills a note up.
    NotePad,
    /// Moves money to another user.
    Transfer,
    /// Lists the directory.
    Directory,
    /// Makes a user.
    NewUser,
    /// Reads the user's state.
    Read,
}

impl Task {
    /// Requests that pass `point`.
    #[must_use]
    pub fn passing(point: Point) -> &'static [Self] {
        match point {
            Point::Alloc => &[Self::NoteAdd, Self::NoteJoin, Self::NotePad],
            Point::Free => &[Self::NoteDelete, Self::NoteJoin],
            Point::Leave => &[Self::Directory],
            Point::Copy | Point::Library => &[Self::NoteAdd, Self::NoteJoin, Self::NotePad],
            Point::Enter | Point::Entered | Point::Commit | Point::Committed => &[
                Self::Deposit,
                Self::NoteAdd,
                Self::NoteDelete,
                Self::NoteJoin,
            ],
            _ => &[
                Self::Deposit,
                Self::NoteAdd,
                Self::NoteDelete,
                Self::NoteJoin,
                Self::NotePad,
                Self::Read,
            ],
        }
    }

    /// The request for `user`, which adds a note if it needs one and there is none. `others` are possible receivers of
    /// money.
    pub fn command(self, user: &User, others: &[(usize, String)], rng: &mut impl Rng) -> Command {
        let note = user.notes.iter().choose(rng).map(|note| note.id);
        let text = || "remember the milk and the bread, and the tickets".to_owned();
        match (self, note) {
            (Self::Transfer, _) if user.balance > 10 => match others.iter().choose(rng) {
                Some((receiver, name)) => Command::Transfer {
                    receiver: *receiver,
                    name: name.clone(),
                    amount: rng.random_range(1..10),
                },
                None => Command::Deposit(7),
            },
            (Self::Directory, _) => Command::Directory,
            (Self::Read, _) => Command::Read,
            (Self::NoteDelete, Some(id)) => Command::NoteDelete(vec![id]),
            (Self::NotePad, Some(id)) => Command::NotePad(id, rng.random_range(100..300)),
            (Self::NoteJoin, Some(id)) => {
                let second = user.notes.iter().find(|other| other.id != id);
                match second {
                    Some(second) => Command::NoteJoin(id, second.id),
                    None => Command::NoteAdd(text()),
                }
            }
            (Self::Deposit | Self::Transfer, _) => Command::Deposit(rng.random_range(1..500)),
            _ => Command::NoteAdd(text()),
        }
    }
}
