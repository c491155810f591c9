//! The commands about notes.

use std::ptr;

use vmsrs::{Domain, Error};

use crate::commands::{Context, number};
use crate::state::{Note, Text, User};

/// A command that starts with `NOTE`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum NoteCommand<'a> {
    Add(&'a str),
    Edit(u32, &'a str),
    Delete(&'a str),
    List,
    Pad(u32, usize),
    Quote(u32),
    Join(u32, u32),
    Average(&'a str),
}

impl<'a> NoteCommand<'a> {
    /// Parses what follows `NOTE`.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let (word, argument) = text.split_once(' ').unwrap_or((text, ""));
        let second = argument.split_once(' ').map_or("", |(_, second)| second);
        Some(match word {
            "ADD" => Self::Add(argument),
            "EDIT" => Self::Edit(number(argument), second),
            "DELETE" => Self::Delete(argument),
            "LIST" => Self::List,
            "PAD" => Self::Pad(number(argument), number(second)),
            "QUOTE" => Self::Quote(number(argument)),
            "JOIN" => Self::Join(number(argument), number(second)),
            "AVERAGE" => Self::Average(argument),
            _ => return None,
        })
    }

    /// Does the work.
    pub(crate) fn run(self, context: &mut Context<'_>, user: &mut User) -> Result<(), Error> {
        match self {
            Self::Add(text) => add(context, user, text),
            Self::Edit(id, text) => edit(context, user, id, text),
            Self::Delete(ids) => delete(context, user, ids),
            Self::List => {
                context.say(format_args!("OK notes={}", user.note_count))?;
                user.notes().try_for_each(|note| {
                    context.say(format_args!(" {}:{}", note.id, note.text.len()))
                })
            }
            Self::Pad(id, width) => pad(context, user, id, width),
            Self::Quote(id) => quote(context, user, id),
            Self::Join(first, second) => join(context, user, first, second),
            Self::Average(prefix) => average(context, user, prefix),
        }
    }
}

fn add(context: &mut Context<'_>, user: &mut User, text: &str) -> Result<(), Error> {
    user.touch(context.line);
    user.last_id += 1;
    let block = context
        .domain
        .allocate(size_of::<Note>(), align_of::<Note>())?;
    let note = block.cast::<Note>();
    let text = Text::new(context.domain, &[text.as_bytes()])?;
    let mut link = &raw mut user.notes;
    // SAFETY: the list consists of valid notes, and `note` is a fresh block of a note's size.
    unsafe {
        note.write(Note {
            next: ptr::null_mut(),
            id: user.last_id,
            changed: user.changes as u32,
            text,
        });
        while !(*link).is_null() {
            link = &raw mut (**link).next;
        }
        *link = note.as_ptr();
    }
    user.note_count += 1;
    context.update_entry(user)?;
    context.say(format_args!("OK note={}", user.last_id))
}

fn edit(context: &mut Context<'_>, user: &mut User, id: u32, text: &str) -> Result<(), Error> {
    let note = user.find(id);
    user.touch(context.line);
    // SAFETY: none. BUG, null write: an unknown id gives a null pointer.
    let note = unsafe {
        (&raw mut (*note).changed).write(user.changes as u32);
        &mut *note
    };
    replace(
        context.domain,
        note,
        Text::new(context.domain, &[text.as_bytes()])?,
    )?;
    context.update_entry(user)?;
    context.say(format_args!("OK note={id}"))
}

fn delete(context: &mut Context<'_>, user: &mut User, ids: &str) -> Result<(), Error> {
    // A request that is cut short would leak a vector.
    let mut victims = [ptr::null_mut::<Note>(); 16];
    let mut count = 0;
    for id in ids.split(' ').take(victims.len()) {
        victims[count] = user.find(number(id));
        if victims[count].is_null() {
            return context.say(format_args!("NO note"));
        }
        count += 1;
    }
    user.touch(context.line);
    for &note in &victims[..count] {
        unlink(user, note);
        // SAFETY: the note is out of the list. BUG, double free: unless an id is given twice.
        unsafe { free_note(context.domain, note)? };
    }
    context.update_entry(user)?;
    context.say(format_args!("OK notes={}", user.note_count))
}

fn pad(context: &mut Context<'_>, user: &mut User, id: u32, width: usize) -> Result<(), Error> {
    // SAFETY: notes in the list are valid.
    let Some(note) = (unsafe { user.find(id).as_mut() }) else {
        return context.say(format_args!("NO note"));
    };
    user.touch(context.line);
    note.changed = user.changes as u32;
    // BUG, heap overflow: from 65,536 on the width is truncated here, and the room is too small.
    let room = usize::from(width as u16);
    if room > note.text.room() {
        let mut text = Text::with_room(context.domain, room)?;
        // SAFETY: the new text has more room than the old one.
        unsafe { text.append_unchecked(note.text.as_bytes()) };
        replace(context.domain, note, text)?;
    }
    if width > note.text.len() {
        // SAFETY: the room is at least `width`, apart from the bug above.
        unsafe { note.text.fill_unchecked(b'.', width) };
    }
    context.update_entry(user)?;
    context.say(format_args!("OK note={id}"))
}

fn quote(context: &mut Context<'_>, user: &mut User, id: u32) -> Result<(), Error> {
    // SAFETY: notes in the list are valid.
    let Some(note) = (unsafe { user.find(id).as_mut() }) else {
        return context.say(format_args!("NO note"));
    };
    user.touch(context.line);
    note.changed = user.changes as u32;
    let mut text = Text::with_room(context.domain, note.text.len() + 2)?;
    // SAFETY: there is room for the text and two quotes. BUG, small overrun: quotes in the text get a
    // backslash each, which is not counted.
    unsafe {
        text.append_unchecked(b"\"");
        for byte in note.text.as_bytes() {
            if *byte == b'"' {
                text.append_unchecked(b"\\");
            }
            text.append_unchecked(&[*byte]);
        }
        text.append_unchecked(b"\"");
    }
    replace(context.domain, note, text)?;
    context.update_entry(user)?;
    context.say(format_args!("OK note={id}"))
}

fn join(context: &mut Context<'_>, user: &mut User, first: u32, second: u32) -> Result<(), Error> {
    let (first, second) = (user.find(first), user.find(second));
    if first.is_null() || second.is_null() {
        return context.say(format_args!("NO note"));
    }
    user.touch(context.line);
    // SAFETY: both notes are valid. BUG, use after free: a note that is joined with itself has been freed when its number
    // of changes is written.
    unsafe {
        let parts = [(*first).text.as_bytes(), (*second).text.as_bytes()];
        let text = Text::new(context.domain, &parts)?;
        replace(context.domain, &mut *first, text)?;
        unlink(user, second);
        free_note(context.domain, second)?;
        (&raw mut (*first).changed).write_volatile(user.changes as u32);
    }
    context.update_entry(user)?;
    context.say(format_args!("OK notes={}", user.note_count))
}

fn average(context: &mut Context<'_>, user: &mut User, prefix: &str) -> Result<(), Error> {
    if !context.charge(user)? {
        return Ok(());
    }
    let (mut total, mut count) = (0, 0);
    for note in user.notes() {
        if note.text.as_bytes().starts_with(prefix.as_bytes()) {
            total += note.text.len();
            count += 1;
        }
    }
    // BUG, panic: division by zero when no note has the prefix.
    let average = total / count;
    context.update_entry(user)?;
    context.say(format_args!("OK average={average}"))
}

/// Replaces the note's text and frees the old one.
fn replace(domain: &'static Domain, note: &mut Note, text: Text) -> Result<(), Error> {
    let old = std::mem::replace(&mut note.text, text);
    // SAFETY: the old text is not referenced any more.
    unsafe { old.free(domain) }
}

/// Takes the note out of the list.
fn unlink(user: &mut User, note: *mut Note) {
    let mut link = &raw mut user.notes;
    // SAFETY: the list consists of valid notes.
    unsafe {
        while !(*link).is_null() {
            if *link == note {
                *link = (*note).next;
                user.note_count -= 1;
                return;
            }
            link = &raw mut (**link).next;
        }
    }
}

/// Frees a note and its text.
///
/// # Safety
///
/// It is out of the list, and not freed yet.
unsafe fn free_note(domain: &'static Domain, note: *mut Note) -> Result<(), Error> {
    // SAFETY: passed on to the caller.
    unsafe {
        let text = ptr::read(&raw const (*note).text);
        domain.deallocate(ptr::NonNull::new_unchecked(note).cast())?;
        text.free(domain)
    }
}
