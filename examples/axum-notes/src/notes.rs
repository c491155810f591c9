//! What a user's domain has: a list of notes.

use crate::morse;
use allocator_api2::vec::Vec;
use std::ptr::NonNull;
use vmsrs::{DomainAllocator, Error, Request};

/// Bytes of a note.
type Note = Vec<u8, DomainAllocator>;

/// The root of a user's domain.
type Notes = Vec<Note, DomainAllocator>;

/// The user's notes, made if there are none.
fn root(request: &Request) -> Result<NonNull<Notes>, Error> {
    if let Some(notes) = request.root() {
        return Ok(notes);
    }
    let notes = request.alloc(Notes::new_in(request.domain().allocator()))?;
    let notes = NonNull::from(notes);
    request.set_root(Some(notes))?;
    Ok(notes)
}

/// Adds a note; returns how many there are.
///
/// # Errors
///
/// As [`Request::alloc`].
pub fn add(request: &Request, text: &[u8]) -> Result<usize, Error> {
    let mut note = Note::new_in(request.domain().allocator());
    note.extend_from_slice(text);
    push(request, note)
}

/// Adds a note in Morse code, which the C library writes to the user's domain; returns how many notes there are.
///
/// # Errors
///
/// As [`Request::alloc`].
pub fn add_in_morse(request: &Request, text: &[u8]) -> Result<usize, Error> {
    let mut note = Note::new_in(request.domain().allocator());
    note.resize(morse::room_for(text), 0);
    let length = morse::encode(text, &mut note);
    note.truncate(length);
    push(request, note)
}

fn push(request: &Request, note: Note) -> Result<usize, Error> {
    // SAFETY: the root of these domains is always such a list; the request holds the domain, and this is its only borrow.
    let notes = unsafe { root(request)?.as_mut() };
    notes.push(note);
    Ok(notes.len())
}

/// A copy of all notes, one in a line: what is sent lies outside of the domain.
///
/// # Errors
///
/// As [`Request::alloc`].
pub fn all(request: &Request) -> Result<std::vec::Vec<u8>, Error> {
    // SAFETY: as in push().
    let notes = unsafe { root(request)?.as_ref() };
    let lines = notes.iter().map(|note| note.as_slice());
    Ok(lines
        .flat_map(|line| [line, b"\n"])
        .flatten()
        .copied()
        .collect())
}
