//! The commands of the protocol that need a user.

use std::fmt;
use std::io::Write;

use vmsrs::{Domain, Error, Request};

use crate::notes::NoteCommand;
use crate::state::{Directory, User};
use crate::sums;

/// What some requests cost.
const FEE: i64 = 1;
/// The greatest balance.
const FREE_CREDIT: i64 = 1_000_000_000;

/// A command with its arguments.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Command<'a> {
    Deposit(i64),
    Withdraw(i64),
    Transfer { name: &'a str, amount: i64 },
    Tax(i64),
    Label { slot: usize, value: i64 },
    Calc(&'a str),
    Read,
    Directory,
    Note(NoteCommand<'a>),
}

/// A running request.
pub(crate) struct Context<'a> {
    pub(crate) request: &'a Request,
    /// The user's domain.
    pub(crate) domain: &'static Domain,
    pub(crate) directory: &'static Domain,
    pub(crate) line: &'a str,
    pub(crate) answer: &'a mut Vec<u8>,
}

impl Context<'_> {
    /// Adds to the answer.
    pub(crate) fn say(&mut self, words: fmt::Arguments<'_>) -> Result<(), Error> {
        // Writing to a vector does not fail.
        let _ = self.answer.write_fmt(words);
        Ok(())
    }

    /// Deducts the fee and records the change. Without the money it answers the client and returns false.
    pub(crate) fn charge(&mut self, user: &mut User) -> Result<bool, Error> {
        if user.balance < FEE {
            self.say(format_args!("NO funds"))?;
            return Ok(false);
        }
        user.touch(self.line);
        user.balance -= FEE;
        Ok(true)
    }

    /// Enters the directory until the end of the request and updates the user's entry: both commit together.
    pub(crate) fn update_entry(&self, user: &User) -> Result<(), Error> {
        self.request.enter(self.directory)?.keep();
        // SAFETY: entered above; the reference ends before there is another.
        if let Some(directory) = unsafe { Directory::of(self.directory) } {
            directory.changes += 1;
        }
        // SAFETY: the entry was created with the user, and the request holds the directory.
        unsafe {
            (*user.entry).changes = user.changes;
            (*user.entry).notes = user.note_count;
        }
        Ok(())
    }

    fn balance(&mut self, user: &User) -> Result<(), Error> {
        self.say(format_args!("OK balance={}", user.balance))
    }
}

/// The number at the start of an argument, or 0.
pub(crate) fn number<T: std::str::FromStr + Default>(text: &str) -> T {
    let word = text.split(' ').next().unwrap_or_default();
    word.parse().unwrap_or_default()
}

impl<'a> Command<'a> {
    /// Parses a line.
    pub(crate) fn parse(line: &'a str) -> Option<Self> {
        let (word, argument) = line.split_once(' ').unwrap_or((line, ""));
        let second = argument.split_once(' ').map_or("", |(_, second)| second);
        Some(match word {
            "DEPOSIT" => Self::Deposit(number(argument)),
            "WITHDRAW" => Self::Withdraw(number(argument)),
            "TRANSFER" => Self::Transfer {
                name: argument.split(' ').next().unwrap_or_default(),
                amount: number(second),
            },
            "TAX" => Self::Tax(number(argument)),
            "LABEL" => Self::Label {
                slot: number(argument),
                value: number(second),
            },
            "CALC" => Self::Calc(argument),
            "READ" => Self::Read,
            "DIRECTORY" => Self::Directory,
            "NOTE" => Self::Note(NoteCommand::parse(argument)?),
            _ => return None,
        })
    }

    /// Does the work; `other` is the receiver of a transfer.
    pub(crate) fn run(
        &self,
        context: &mut Context<'_>,
        user: &mut User,
        other: Option<&mut User>,
    ) -> Result<(), Error> {
        match *self {
            Self::Deposit(amount) => {
                if amount <= 0 || amount > FREE_CREDIT - user.balance {
                    return context.say(format_args!("NO amount"));
                }
                user.touch(context.line);
                user.balance += amount;
                context.update_entry(user)?;
                context.balance(user)
            }
            Self::Withdraw(amount) => {
                if amount <= 0 || amount > user.balance {
                    return context.say(format_args!("NO funds"));
                }
                user.touch(context.line);
                user.balance -= amount;
                context.update_entry(user)?;
                context.balance(user)
            }
            Self::Transfer { amount, .. } => match other {
                Some(other) => transfer(context, user, other, amount),
                None => context.say(format_args!("NO user")),
            },
            Self::Tax(percent) => {
                user.touch(context.line);
                user.balance -= user.balance * percent / 100;
                context.update_entry(user)?;
                // BUG, panic: the percentage is not checked.
                assert!(user.balance >= 0, "a tax took more than there was");
                context.balance(user)
            }
            Self::Label { slot, value } => {
                if !context.charge(user)? {
                    return Ok(());
                }
                context.update_entry(user)?;
                // SAFETY: none. BUG, wild pointer: the slot is not checked. The directory is locked
                // and half changed.
                unsafe {
                    let labels = (&raw mut (*user.entry).labels).cast::<i64>();
                    labels.add(slot).write(value);
                }
                context.say(format_args!("OK label={value}"))
            }
            Self::Calc(text) => {
                if !context.charge(user)? {
                    return Ok(());
                }
                context.update_entry(user)?;
                user.value = sums::evaluate(text);
                context.say(format_args!("OK value={}", user.value))
            }
            Self::Read => read(context, user),
            Self::Directory => directory(context),
            Self::Note(command) => command.run(context, user),
        }
    }
}

fn transfer(
    context: &mut Context<'_>,
    user: &mut User,
    other: &mut User,
    amount: i64,
) -> Result<(), Error> {
    if amount <= 0 || amount > user.balance || amount > FREE_CREDIT - other.balance {
        return context.say(format_args!("NO funds"));
    }
    user.touch(context.line);
    user.balance -= amount;
    other.touch(context.line);
    other.balance += amount;
    context.update_entry(user)?;
    // SAFETY: both entries were created with their users, and the request holds the directory.
    unsafe {
        (*user.entry).transfers_out += 1;
        (*other.entry).transfers_in += 1;
        (*other.entry).changes = other.changes;
    }
    context.balance(user)
}

/// Everything in the user's state, exactly.
fn read(context: &mut Context<'_>, user: &User) -> Result<(), Error> {
    context.say(format_args!(
        "OK user={} balance={} value={} changes={} last={} memo={}:",
        user.name.as_str(),
        user.balance,
        user.value,
        user.changes,
        user.last_id,
        user.memo.as_bytes().len()
    ))?;
    context.answer.extend_from_slice(user.memo.as_bytes());
    context.say(format_args!(" notes={}", user.note_count))?;
    for note in user.notes() {
        let length = note.text.len();
        context.say(format_args!(" {}:{}:{length}:", note.id, note.changed))?;
        context.answer.extend_from_slice(note.text.as_bytes());
    }
    Ok(())
}

/// All entries. The count of listings is committed when the directory is left.
fn directory(context: &mut Context<'_>) -> Result<(), Error> {
    let entered = context.request.enter(context.directory)?;
    // SAFETY: entered above; the only reference in this request.
    if let Some(directory) = unsafe { Directory::of(context.directory) } {
        directory.listings += 1;
        context.say(format_args!(
            "OK users={} changes={} listings={}",
            directory.users, directory.changes, directory.listings
        ))?;
        for entry in directory.entries() {
            context.say(format_args!(
                " {}:{}:{}:{}:{}",
                entry.name.as_str(),
                entry.notes,
                entry.changes,
                entry.transfers_in,
                entry.transfers_out
            ))?;
            for label in entry.labels {
                context.say(format_args!(":{label}"))?;
            }
        }
    }
    entered.leave()
}
