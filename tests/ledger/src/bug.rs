//! The server's planted bugs, and the request that reaches each.

use rand::Rng;

use crate::command::{Command, PAD_LIMIT};
use crate::model::User;

/// Parentheses in the expression that overflows every stack the server may have.
const NESTING: usize = 40_000;

/// A bug of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bug {
    /// Write through a null pointer.
    NullWrite,
    /// Write over the end of a block until it leaves the user's own pages.
    HeapOverflow,
    /// Write a few bytes over the end of a block.
    SmallOverrun,
    /// Write into a freed block.
    UseAfterFree,
    /// A block freed twice.
    DoubleFree,
    /// Unbounded recursion.
    StackOverflow,
    /// Division by zero.
    DivisionByZero,
    /// A failed assertion.
    Abort,
    /// Write through a wild pointer with the directory locked and half changed.
    WildWrite,
}

impl Bug {
    /// All bugs.
    pub const ALL: [Self; 9] = [
        Self::NullWrite,
        Self::HeapOverflow,
        Self::SmallOverrun,
        Self::UseAfterFree,
        Self::DoubleFree,
        Self::StackOverflow,
        Self::DivisionByZero,
        Self::Abort,
        Self::WildWrite,
    ];

    /// The name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::NullWrite => "null write",
            Self::HeapOverflow => "heap overflow into other users' pages",
            Self::SmallOverrun => "heap overrun by a few bytes",
            Self::UseAfterFree => "use after free",
            Self::DoubleFree => "double free",
            Self::StackOverflow => "stack overflow",
            Self::DivisionByZero => "division by zero",
            Self::Abort => "failed assertion",
            Self::WildWrite => "wild write, shared lock held",
        }
    }

    /// The ordinary request that must come first to make the bug reachable, if any.
    pub fn preparation(self, user: &User) -> Option<Command> {
        let rich = user.balance >= 100;
        match self {
            Self::DivisionByZero | Self::Abort | Self::WildWrite | Self::StackOverflow => {
                (!rich).then_some(Command::Deposit(500))
            }
            Self::SmallOverrun if quoted_note(user).is_none() => Some(Command::NoteAdd(
                "she said \"good morning\" and went on".to_owned(),
            )),
            Self::HeapOverflow | Self::UseAfterFree | Self::DoubleFree if user.notes.is_empty() => {
                Some(Command::NoteAdd("something to remember".to_owned()))
            }
            _ => None,
        }
    }

    /// The fatal request; [`Bug::preparation`] must return `None`.
    pub fn request(self, user: &User, rng: &mut impl Rng) -> Command {
        let note = |rng: &mut dyn rand::RngCore| {
            let index = rng.random_range(0..user.notes.len());
            user.notes[index].id
        };
        match self {
            Self::NullWrite => {
                Command::NoteEdit(rng.random_range(900_000..1_000_000), "lost".to_owned())
            }
            Self::HeapOverflow => {
                Command::NotePad(note(rng), 64 * PAD_LIMIT + rng.random_range(20..60))
            }
            Self::SmallOverrun => {
                Command::NoteQuote(quoted_note(user).expect("a note with quotes was prepared"))
            }
            Self::UseAfterFree => {
                let id = note(rng);
                Command::NoteJoin(id, id)
            }
            Self::DoubleFree => {
                let id = note(rng);
                Command::NoteDelete(vec![id, id])
            }
            Self::StackOverflow => Command::Calc("(".repeat(NESTING)),
            Self::DivisionByZero => Command::NoteAverage("nothing begins so".to_owned()),
            Self::Abort => Command::Tax(rng.random_range(150..400)),
            Self::WildWrite => Command::Label(
                rng.random_range(100_000_000..200_000_000),
                rng.random_range(0..1000),
            ),
        }
    }
}

fn quoted_note(user: &User) -> Option<u32> {
    let quoted = |note: &&crate::model::Note| note.text.contains('"');
    user.notes.iter().find(quoted).map(|note| note.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::SmallRng};

    #[test]
    fn every_bug_is_reachable_after_one_request() {
        let mut rng = SmallRng::seed_from_u64(1);
        for kind in Bug::ALL {
            let mut user = User::new("a");
            if let Some(command) = kind.preparation(&user) {
                user.apply(&command, None);
            }
            assert_eq!(kind.preparation(&user), None, "{kind:?}");
            assert!(kind.request(&user, &mut rng).to_string().len() < 65_000);
        }
    }

    #[test]
    fn names_are_distinct() {
        let names: std::collections::BTreeSet<_> = Bug::ALL.map(Bug::name).into();
        assert_eq!(names.len(), Bug::ALL.len());
    }
}
