//! The parsed answer to `DIRECTORY`.

use std::collections::BTreeMap;

use crate::model::DirectoryChange;

/// The directory as the server lists it.
#[derive(Debug, PartialEq, Eq)]
pub struct Directory {
    users: usize,
    changes: u64,
    listings: u64,
    entries: BTreeMap<String, String>,
}

/// The line is not a directory.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed directory: {0:?}")]
pub struct Malformed(String);

impl Directory {
    /// Parses the answer.
    ///
    /// # Errors
    ///
    /// When a field is missing.
    pub fn parse(line: &[u8]) -> Result<Self, Malformed> {
        let text = String::from_utf8_lossy(line);
        let malformed = || Malformed(text.chars().take(120).collect());
        let mut words = text.split(' ');
        if words.next() != Some("OK") {
            return Err(malformed());
        }
        let mut field = |name: &str| -> Option<u64> {
            words
                .next()?
                .strip_prefix(name)?
                .strip_prefix('=')?
                .parse()
                .ok()
        };
        let users = field("users").ok_or_else(malformed)?;
        let changes = field("changes").ok_or_else(malformed)?;
        let listings = field("listings").ok_or_else(malformed)?;
        let entries = words
            .map(|entry| {
                let name = entry.split(':').next().unwrap_or_default();
                (name.to_owned(), entry.to_owned())
            })
            .collect();
        Ok(Self {
            users: usize::try_from(users).map_err(|_| malformed())?,
            changes,
            listings,
            entries,
        })
    }

    /// Its counts of changes and listings.
    #[must_use]
    pub fn counts(&self) -> DirectoryChange {
        DirectoryChange {
            changes: self.changes,
            listings: self.listings,
        }
    }

    /// Differences from what is expected, in words. `entries` must be present byte for byte, and beside them only those
    /// of the users `others`. The counts are `known`, or up to `maybe` more.
    #[must_use]
    pub fn compare(
        &self,
        entries: &[String],
        others: &[String],
        known: DirectoryChange,
        maybe: DirectoryChange,
    ) -> Vec<String> {
        let mut trouble = Vec::new();
        for entry in entries {
            let name = entry.split(':').next().unwrap_or_default();
            match self.entries.get(name) {
                Some(found) if found == entry => {}
                found => trouble.push(format!("found {found:?}, expected {entry:?}")),
            }
        }
        let names = || {
            let names = entries.iter().filter_map(|entry| entry.split(':').next());
            names.chain(others.iter().map(String::as_str))
        };
        for name in self.entries.keys() {
            if !names().any(|known| known == name) {
                trouble.push(format!("unknown user {name:?}"));
            }
        }
        if self.users != self.entries.len() {
            let count = self.entries.len();
            trouble.push(format!("it counts {} users and lists {count}", self.users));
        }
        for (what, found, known, maybe) in [
            ("changes", self.changes, known.changes, maybe.changes),
            ("listings", self.listings, known.listings, maybe.listings),
        ] {
            if !(known..=known + maybe).contains(&found) {
                trouble.push(format!(
                    "{found} {what}, expected {known} to {}",
                    known + maybe
                ));
            }
        }
        trouble
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] = b"OK users=2 changes=3 listings=1 a:0:2:0:1:0:0:0:0 b:0:1:1:0:0:0:0:0";

    fn change(changes: u64, listings: u64) -> DirectoryChange {
        DirectoryChange { changes, listings }
    }

    #[test]
    fn correct_directory_has_no_differences() {
        let directory = Directory::parse(LINE).unwrap();
        let entries = ["a:0:2:0:1:0:0:0:0".to_owned()];
        let none = directory.compare(&entries, &["b".to_owned()], change(3, 1), change(0, 0));
        assert_eq!(none, [""; 0]);
        let maybe = directory.compare(&entries, &["b".to_owned()], change(2, 0), change(1, 1));
        assert_eq!(maybe, [""; 0]);
    }

    #[test]
    fn every_difference_is_seen() {
        let directory = Directory::parse(LINE).unwrap();
        let wrong = ["a:0:2:0:1:0:0:0:7".to_owned(), "c:0".to_owned()];
        let trouble = directory.compare(&wrong, &[], change(4, 0), change(0, 0));
        // An entry that differs, one that is missing, a user too many, and both counts.
        assert_eq!(trouble.len(), 5, "{trouble:?}");
    }

    #[test]
    fn other_answers_are_malformed() {
        assert!(Directory::parse(b"NO user").is_err());
        assert!(Directory::parse(b"OK users=x").is_err());
    }
}
