//! The commands of the ledger's protocol.

use std::fmt;

/// Widths from here on are truncated by the server's `NOTE PAD`.
pub const PAD_LIMIT: u32 = 65_536;

/// A command. [`fmt::Display`] gives its line, without the newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Selects the user of the requests that follow, and creates it if it does not exist.
    User(String),
    /// Adds money.
    Deposit(i64),
    /// Withdraws money.
    Withdraw(i64),
    /// Moves money to another user.
    Transfer {
        /// Index of the receiver in the model.
        receiver: usize,
        /// Name of the receiver.
        name: String,
        /// How much.
        amount: i64,
    },
    /// Deducts a share of the balance, in percent.
    Tax(i64),
    /// Adds a note.
    NoteAdd(String),
    /// Replaces the text of a note.
    NoteEdit(u32, String),
    /// Deletes notes.
    NoteDelete(Vec<u32>),
    /// Lists the notes' numbers and lengths.
    NoteList,
    /// Fills a note with dots up to a width.
    NotePad(u32, u32),
    /// Puts quotes around a note.
    NoteQuote(u32),
    /// Appends the second note to the first and deletes the second.
    NoteJoin(u32, u32),
    /// Mean length of the notes that start with a text.
    NoteAverage(String),
    /// Evaluates an expression.
    Calc(String),
    /// Sets a label in the directory.
    Label(i64, i64),
    /// Everything in the user's state.
    Read,
    /// The whole directory.
    Directory,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "USER {name}"),
            Self::Deposit(amount) => write!(f, "DEPOSIT {amount}"),
            Self::Withdraw(amount) => write!(f, "WITHDRAW {amount}"),
            Self::Transfer { name, amount, .. } => write!(f, "TRANSFER {name} {amount}"),
            Self::Tax(percent) => write!(f, "TAX {percent}"),
            Self::NoteAdd(text) => write!(f, "NOTE ADD {text}"),
            Self::NoteEdit(id, text) => write!(f, "NOTE EDIT {id} {text}"),
            Self::NoteDelete(ids) => {
                write!(f, "NOTE DELETE")?;
                ids.iter().try_for_each(|id| write!(f, " {id}"))
            }
            Self::NoteList => write!(f, "NOTE LIST"),
            Self::NotePad(id, width) => write!(f, "NOTE PAD {id} {width}"),
            Self::NoteQuote(id) => write!(f, "NOTE QUOTE {id}"),
            Self::NoteJoin(first, second) => write!(f, "NOTE JOIN {first} {second}"),
            Self::NoteAverage(prefix) => write!(f, "NOTE AVERAGE {prefix}"),
            Self::Calc(expression) => write!(f, "CALC {expression}"),
            Self::Label(slot, value) => write!(f, "LABEL {slot} {value}"),
            Self::Read => write!(f, "READ"),
            Self::Directory => write!(f, "DIRECTORY"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_written_as_the_server_reads_them() {
        assert_eq!(
            Command::NoteDelete(vec![1, 7]).to_string(),
            "NOTE DELETE 1 7"
        );
        let transfer = Command::Transfer {
            receiver: 3,
            name: "u03".to_owned(),
            amount: 5,
        };
        assert_eq!(transfer.to_string(), "TRANSFER u03 5");
        assert_eq!(
            Command::NoteEdit(2, "a b".to_owned()).to_string(),
            "NOTE EDIT 2 a b"
        );
    }
}
