//! The expected state of the server, computed outside of its machine.
//!
//! The model is a second implementation of the ledger's ordinary commands. Requests that fail change nothing, so they
//! are not modelled.

use crate::command::Command;

const MEMO_LENGTH: usize = 40;
const LABELS: usize = 4;
const FEE: i64 = 1;
const FREE_CREDIT: i64 = 1_000_000_000;

/// A note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Its number.
    pub id: u32,
    /// The user's number of changes at the last change of this note.
    pub changed: u32,
    /// Its text.
    pub text: String,
}

/// A user's entry in the directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Entry {
    notes: u32,
    changes: u64,
    transfers_in: u32,
    transfers_out: u32,
    labels: [i64; LABELS],
}

/// Everything the server knows about a user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// Money.
    pub balance: i64,
    /// The notes, oldest first.
    pub notes: Vec<Note>,
    value: i64,
    changes: u64,
    last_id: u32,
    memo: String,
    entry: Entry,
}

/// What a request does to the directory as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DirectoryChange {
    /// Changes of entries.
    pub changes: u64,
    /// Listings.
    pub listings: u64,
}

impl std::ops::AddAssign for DirectoryChange {
    fn add_assign(&mut self, other: Self) {
        self.changes += other.changes;
        self.listings += other.listings;
    }
}

/// The answer that a request must get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Exactly this line.
    Line(String),
    /// The directory with this entry; the other entries change concurrently.
    DirectoryWith(String),
}

impl Expected {
    /// Whether `line` is the expected answer.
    pub fn matches(&self, line: &[u8]) -> bool {
        match self {
            Self::Line(expected) => expected.as_bytes() == line,
            Self::DirectoryWith(entry) => line
                .split(|&byte| byte == b' ')
                .any(|word| word == entry.as_bytes()),
        }
    }
}

impl User {
    /// A user as `USER` creates it.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// The answer to `READ`.
    pub fn dump(&self) -> String {
        let mut dump = format!(
            "OK user={} balance={} value={} changes={} last={} memo={}:{} notes={}",
            self.name,
            self.balance,
            self.value,
            self.changes,
            self.last_id,
            self.memo.len(),
            self.memo,
            self.notes.len()
        );
        for note in &self.notes {
            dump.push_str(&format!(
                " {}:{}:{}:{}",
                note.id,
                note.changed,
                note.text.len(),
                note.text
            ));
        }
        dump
    }

    /// This user with the memo and the notes' texts of an answer to `READ`, if they are plain text and nothing else
    /// differs.
    pub fn with_texts_of(&self, dump: &[u8]) -> Option<Self> {
        let dump = std::str::from_utf8(dump).ok()?;
        if !dump.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return None;
        }
        let mut user = self.clone();
        let (_, rest) = dump.split_once(" memo=")?;
        let (memo, rest) = split_counted(rest)?;
        memo.clone_into(&mut user.memo);
        let mut rest = rest.strip_prefix(" notes=")?;
        rest = rest.trim_start_matches(|digit: char| digit.is_ascii_digit());
        for note in &mut user.notes {
            // Number and change are compared with the model below.
            let (_, tail) = rest.strip_prefix(' ')?.split_once(':')?;
            let (_, tail) = tail.split_once(':')?;
            let (text, tail) = split_counted(tail)?;
            text.clone_into(&mut note.text);
            rest = tail;
        }
        (user.dump() == dump).then_some(user)
    }

    /// This user's entry as `DIRECTORY` shows it.
    pub fn entry(&self) -> String {
        let entry = &self.entry;
        let mut text = format!(
            "{}:{}:{}:{}:{}",
            self.name, entry.notes, entry.changes, entry.transfers_in, entry.transfers_out
        );
        for label in entry.labels {
            text.push_str(&format!(":{label}"));
        }
        text
    }

    /// Executes an ordinary command: returns the expected answer and the change of the directory. `receiver` is the other
    /// user of a [`Command::Transfer`].
    ///
    /// # Panics
    ///
    /// On commands that reach a bug, which the model does not have, and on a transfer without `receiver`.
    pub fn apply(
        &mut self,
        command: &Command,
        receiver: Option<&mut User>,
    ) -> (Expected, DirectoryChange) {
        let line = command.to_string();
        let mut change = DirectoryChange::default();
        let answer = match command {
            Command::User(_) => format!("OK user={}", self.name),
            Command::Read => self.dump(),
            Command::Directory => {
                change.listings = 1;
                return (Expected::DirectoryWith(self.entry()), change);
            }
            Command::NoteList => {
                let mut answer = format!("OK notes={}", self.notes.len());
                for note in &self.notes {
                    answer.push_str(&format!(" {}:{}", note.id, note.text.len()));
                }
                answer
            }
            _ => match self.change(command, &line, receiver) {
                Ok(answer) => {
                    change.changes = 1;
                    format!("OK {answer}")
                }
                Err(refusal) => format!("NO {refusal}"),
            },
        };
        (Expected::Line(answer), change)
    }

    fn change(
        &mut self,
        command: &Command,
        line: &str,
        receiver: Option<&mut User>,
    ) -> Result<String, &'static str> {
        match command {
            Command::Deposit(amount) => {
                if *amount <= 0 || *amount > FREE_CREDIT - self.balance {
                    return Err("amount");
                }
                self.touch(line);
                self.balance += amount;
            }
            Command::Withdraw(amount) => {
                if *amount <= 0 || *amount > self.balance {
                    return Err("funds");
                }
                self.touch(line);
                self.balance -= amount;
            }
            Command::Transfer { amount, .. } => {
                let other = receiver.expect("a transfer has a receiver");
                if *amount <= 0 || *amount > self.balance || *amount > FREE_CREDIT - other.balance {
                    return Err("funds");
                }
                self.touch(line);
                self.balance -= amount;
                other.touch(line);
                other.balance += amount;
                self.entry.transfers_out += 1;
                other.entry.transfers_in += 1;
                other.entry.changes = other.changes;
            }
            Command::Tax(percent) => {
                assert!((0..=100).contains(percent), "an ordinary tax");
                self.touch(line);
                self.balance -= self.balance * percent / 100;
            }
            Command::Label(slot, value) => {
                let slot = usize::try_from(*slot).expect("an ordinary slot");
                self.charge(line)?;
                self.update_entry();
                self.entry.labels[slot] = *value;
                return Ok(format!("label={value}"));
            }
            Command::Calc(expression) => {
                self.charge(line)?;
                self.value = evaluate(expression);
                self.update_entry();
                return Ok(format!("value={}", self.value));
            }
            _ => return self.change_notes(command, line),
        }
        self.update_entry();
        Ok(format!("balance={}", self.balance))
    }

    fn change_notes(&mut self, command: &Command, line: &str) -> Result<String, &'static str> {
        let answer = match command {
            Command::NoteAdd(text) => {
                self.touch(line);
                self.last_id += 1;
                self.notes.push(Note {
                    id: self.last_id,
                    changed: self.changed(),
                    text: text.clone(),
                });
                format!("note={}", self.last_id)
            }
            Command::NoteEdit(id, text) => {
                // Another user's failed request may have taken it away, if the server is at fault.
                self.note(*id).ok_or("note")?;
                self.touch(line);
                let changed = self.changed();
                let note = self.note(*id).ok_or("note")?;
                note.text = text.clone();
                note.changed = changed;
                format!("note={id}")
            }
            Command::NotePad(id, width) => {
                assert!(*width < crate::command::PAD_LIMIT, "an ordinary width");
                self.note(*id).ok_or("note")?;
                self.touch(line);
                let changed = self.changed();
                let note = self.note(*id).ok_or("note")?;
                while note.text.len() < *width as usize {
                    note.text.push('.');
                }
                note.changed = changed;
                format!("note={id}")
            }
            Command::NoteQuote(id) => {
                self.note(*id).ok_or("note")?;
                self.touch(line);
                let changed = self.changed();
                let note = self.note(*id).ok_or("note")?;
                assert!(!note.text.contains('"'), "an ordinary text to quote");
                note.text = format!("\"{}\"", note.text);
                note.changed = changed;
                format!("note={id}")
            }
            Command::NoteDelete(ids) => {
                if ids.iter().any(|id| self.note(*id).is_none()) {
                    return Err("note");
                }
                self.touch(line);
                self.notes.retain(|note| !ids.contains(&note.id));
                format!("notes={}", self.notes.len())
            }
            Command::NoteJoin(first, second) => {
                assert_ne!(first, second, "an ordinary join");
                let tail = self.note(*second).ok_or("note")?.text.clone();
                self.note(*first).ok_or("note")?;
                self.touch(line);
                let changed = self.changed();
                let note = self.note(*first).ok_or("note")?;
                note.text.push_str(&tail);
                note.changed = changed;
                self.notes.retain(|note| note.id != *second);
                format!("notes={}", self.notes.len())
            }
            Command::NoteAverage(prefix) => {
                self.charge(line)?;
                let lengths: Vec<usize> = self
                    .notes
                    .iter()
                    .filter(|note| note.text.starts_with(prefix))
                    .map(|note| note.text.len())
                    .collect();
                assert!(!lengths.is_empty(), "an ordinary average");
                format!("average={}", lengths.iter().sum::<usize>() / lengths.len())
            }
            other => unreachable!("{other:?} changes no notes"),
        };
        self.update_entry();
        Ok(answer)
    }

    fn note(&mut self, id: u32) -> Option<&mut Note> {
        self.notes.iter_mut().find(|note| note.id == id)
    }

    fn changed(&self) -> u32 {
        u32::try_from(self.changes).expect("few changes")
    }

    fn touch(&mut self, line: &str) {
        self.changes += 1;
        self.memo = line.chars().take(MEMO_LENGTH).collect();
    }

    fn charge(&mut self, line: &str) -> Result<(), &'static str> {
        if self.balance < FEE {
            return Err("funds");
        }
        self.touch(line);
        self.balance -= FEE;
        Ok(())
    }

    fn update_entry(&mut self) {
        self.entry.changes = self.changes;
        self.entry.notes = u32::try_from(self.notes.len()).expect("few notes");
    }
}

/// Splits `LENGTH:TEXT...` into the text and the rest.
fn split_counted(text: &str) -> Option<(&str, &str)> {
    let (length, rest) = text.split_once(':')?;
    rest.split_at_checked(length.parse().ok()?)
}

/// The answer to `DIRECTORY` while nothing changes: the users in order of name.
pub fn directory(users: &[&User], total: DirectoryChange) -> String {
    let mut users = users.to_vec();
    users.sort_by(|a, b| a.name.cmp(&b.name));
    let mut text = format!(
        "OK users={} changes={} listings={}",
        users.len(),
        total.changes,
        total.listings
    );
    for user in users {
        text.push(' ');
        text.push_str(&user.entry());
    }
    text
}

/// The number of bytes in which two texts differ: unequal bytes at the same position, and those that only one text has.
pub fn differing_bytes(expected: &[u8], found: &[u8]) -> u64 {
    let different = expected.iter().zip(found).filter(|(a, b)| a != b).count();
    (different + expected.len().abs_diff(found.len())) as u64
}

/// The value of an expression of numbers, `+ - *` and parentheses, wrapping at 64 bits; 0 when it
/// is malformed.
fn evaluate(expression: &str) -> i64 {
    let mut rest = expression.as_bytes();
    match sum(&mut rest) {
        Some(value) if rest.is_empty() => value,
        _ => 0,
    }
}

fn sum(rest: &mut &[u8]) -> Option<i64> {
    let mut value = product(rest)?;
    while let Some((&sign @ (b'+' | b'-'), tail)) = rest.split_first() {
        *rest = tail;
        let right = product(rest)?;
        value = match sign {
            b'+' => value.wrapping_add(right),
            _ => value.wrapping_sub(right),
        };
    }
    Some(value)
}

fn product(rest: &mut &[u8]) -> Option<i64> {
    let mut value = factor(rest)?;
    while let Some((b'*', tail)) = rest.split_first() {
        *rest = tail;
        value = value.wrapping_mul(factor(rest)?);
    }
    Some(value)
}

fn factor(rest: &mut &[u8]) -> Option<i64> {
    if let Some((b'(', tail)) = rest.split_first() {
        *rest = tail;
        let value = sum(rest)?;
        let (b')', tail) = rest.split_first()? else {
            return None;
        };
        *rest = tail;
        return Some(value);
    }
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, tail) = rest.split_at(digits);
    *rest = tail;
    std::str::from_utf8(number).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(user: &mut User, command: Command) -> String {
        match user.apply(&command, None).0 {
            Expected::Line(line) => line,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_model_answers_as_the_server_does() {
        let mut user = User::new("a");
        assert_eq!(line(&mut user, Command::Deposit(100)), "OK balance=100");
        assert_eq!(line(&mut user, Command::Withdraw(200)), "NO funds");
        assert_eq!(
            line(&mut user, Command::NoteAdd("hello".to_owned())),
            "OK note=1"
        );
        assert_eq!(line(&mut user, Command::NotePad(1, 8)), "OK note=1");
        assert_eq!(line(&mut user, Command::NoteQuote(1)), "OK note=1");
        assert_eq!(
            line(&mut user, Command::NoteAdd("x".to_owned())),
            "OK note=2"
        );
        assert_eq!(line(&mut user, Command::NoteJoin(1, 2)), "OK notes=1");
        assert_eq!(
            line(&mut user, Command::NoteAverage("\"".to_owned())),
            "OK average=11"
        );
        assert_eq!(line(&mut user, Command::Label(2, -7)), "OK label=-7");
        assert_eq!(
            user.dump(),
            "OK user=a balance=98 value=0 changes=8 last=2 memo=10:LABEL 2 -7 \
             notes=1 1:6:11:\"hello...\"x"
        );
        assert_eq!(user.entry(), "a:1:8:0:0:0:0:-7:0");
    }

    #[test]
    fn a_refused_command_changes_nothing() {
        let mut user = User::new("a");
        let before = user.clone();
        for command in [
            Command::Withdraw(1),
            Command::NoteDelete(vec![1]),
            Command::NoteQuote(1),
            Command::Calc("1".to_owned()),
        ] {
            let (expected, change) = user.apply(&command, None);
            assert!(
                matches!(&expected, Expected::Line(line) if line.starts_with("NO ")),
                "{expected:?}"
            );
            assert_eq!(change, DirectoryChange::default());
        }
        assert_eq!(user, before);
    }

    #[test]
    fn transfer_changes_both_users_and_counts_once() {
        let (mut a, mut b) = (User::new("a"), User::new("b"));
        a.apply(&Command::Deposit(10), None);
        let transfer = Command::Transfer {
            receiver: 1,
            name: "b".to_owned(),
            amount: 4,
        };
        let (expected, change) = a.apply(&transfer, Some(&mut b));
        assert_eq!(expected, Expected::Line("OK balance=6".to_owned()));
        assert_eq!(change.changes, 1);
        assert_eq!((a.balance, b.balance), (6, 4));
        let total = DirectoryChange {
            changes: 2,
            listings: 0,
        };
        assert_eq!(
            directory(&[&b, &a], total),
            "OK users=2 changes=2 listings=0 a:0:2:0:1:0:0:0:0 b:0:1:1:0:0:0:0:0"
        );
    }

    #[test]
    fn only_texts_are_adopted() {
        let mut user = User::new("a");
        line(&mut user, Command::Deposit(9));
        line(&mut user, Command::NoteAdd("some bread".to_owned()));
        line(&mut user, Command::NoteAdd("milk".to_owned()));
        let dump = user.dump().replace("bread", "b: 4d");
        let taken = user.with_texts_of(dump.as_bytes()).unwrap();
        assert_eq!(taken.notes[0].text, "some b: 4d");
        assert_eq!((taken.dump(), taken.entry()), (dump.clone(), user.entry()));
        for (from, to) in [
            ("balance=9", "balance=8"),
            ("milk", "m\u{1}lk"),
            ("4:milk", "9:milk"),
        ] {
            assert_eq!(
                user.with_texts_of(dump.replace(from, to).as_bytes()),
                None,
                "{to}"
            );
        }
    }

    #[test]
    fn entry_is_found_among_others() {
        let expected = Expected::DirectoryWith("b:0:1".to_owned());
        assert!(expected.matches(b"OK users=2 a:0:1 b:0:1"));
        assert!(!expected.matches(b"OK users=2 a:0:1 b:0:12"));
    }

    #[test]
    fn expressions_have_the_usual_precedence() {
        assert_eq!(evaluate("1+2*(3-4*2)*5-1"), -50);
        assert_eq!(evaluate("2*3+4*5"), 26);
        assert_eq!(evaluate("10-2-3"), 5);
        assert_eq!(evaluate("(1"), 0);
        assert_eq!(evaluate("1+"), 0);
    }

    #[test]
    fn differing_bytes_are_counted_at_their_places() {
        assert_eq!(differing_bytes(b"abc", b"abc"), 0);
        assert_eq!(differing_bytes(b"abc", b"axc"), 1);
        assert_eq!(differing_bytes(b"abc", b"ab"), 1);
        assert_eq!(differing_bytes(b"", b"ab"), 2);
    }
}
