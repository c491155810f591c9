//! The owner of a block of the server's heap, found by following the server's own pointers.
//!
//! With VMSRS each user's blocks would be in that user's domain, and the directory's in a shared one.

use std::io;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::place::{self, Block};
use crate::server::Program;
use crate::tracee::Tracee;

/// The owner of a block, relative to the request in or after which it was corrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// State of the request's user.
    Own,
    /// State of another user.
    OtherUser,
    /// The directory.
    Shared,
    /// The process itself.
    Process,
}

// Offsets in the structures of `tests/ledger/servers/ledger.c`.
const ACCOUNT_NAME: u64 = 8;
const ACCOUNT_DOMAIN: u64 = 32;
const DOMAIN_ROOT: u64 = 40;
const USER_NOTES: u64 = 104;
const NOTE_TEXT: u64 = 24;
const DIRECTORY_FIRST: u64 = 24;

/// Longer lists have been corrupted.
const LONGEST: usize = 1000;

/// Finds the owner of the block with `address` in it; `user` is the name of the request's user.
///
/// # Errors
///
/// When the server's lists cannot be followed.
pub fn owner(tracee: &Tracee, program: &Program, address: u64, user: &str) -> Result<Owner> {
    let base = place::base(tracee, program)?;
    let blocks = place::heap(tracee)?;
    let variable = |name: &str| -> Result<u64> {
        let symbols = program.symbols.data();
        let symbol = symbols.iter().find(|symbol| symbol.name == name);
        let symbol = symbol.with_context(|| format!("the server has no {name}"))?;
        Ok(tracee.word(base + symbol.address)?)
    };
    let block: &Block = blocks
        .iter()
        .find(|block| (block.start..block.end).contains(&address))
        .context("the word is in no block")?;
    let here = |pointer| (block.start..block.end).contains(&pointer);
    for account in list(tracee, variable("accounts")?)? {
        let state = tracee.word(tracee.word(account + ACCOUNT_DOMAIN)? + DOMAIN_ROOT)?;
        if state == 0 {
            continue;
        }
        let mut found = here(state);
        for note in list(tracee, tracee.word(state + USER_NOTES)?)? {
            found |= here(note) || here(tracee.word(note + NOTE_TEXT)?);
        }
        if found {
            let mut name = vec![0; user.len() + 1];
            tracee.read(account + ACCOUNT_NAME, &mut name)?;
            let own = name.strip_suffix(&[0]) == Some(user.as_bytes());
            return Ok(if own { Owner::Own } else { Owner::OtherUser });
        }
    }
    let directory = tracee.word(variable("directory_domain")? + DOMAIN_ROOT)?;
    let mut shared = here(directory);
    for entry in list(tracee, tracee.word(directory + DIRECTORY_FIRST)?)? {
        shared |= here(entry);
    }
    Ok(if shared {
        Owner::Shared
    } else {
        Owner::Process
    })
}

/// The elements of a list whose links are its elements' first words.
fn list(tracee: &Tracee, mut element: u64) -> io::Result<Vec<u64>> {
    let mut elements = Vec::new();
    while element != 0 && elements.len() < LONGEST {
        elements.push(element);
        element = tracee.word(element)?;
    }
    Ok(elements)
}
