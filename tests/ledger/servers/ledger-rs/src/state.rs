//! The state in domains.
//!
//! It is `repr(C)` and linked by plain pointers: domains have the same addresses in every process, so a restarted server
//! finds everything as it was.

use std::ptr::{self, NonNull};

use vmsrs::{Domain, Error, Request};

/// Longest name in bytes.
const NAME_MAX: usize = 23;
/// Bytes that are kept of the last request that changed anything.
const MEMO_MAX: usize = 40;
/// Labels in each entry.
pub(crate) const LABELS: usize = 4;

/// The name of a user.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    bytes: [u8; NAME_MAX],
    length: u8,
}

impl Name {
    /// A name of 1 to 23 letters, digits, `-` or `_`.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
        if name.is_empty() || name.len() > NAME_MAX || !name.as_bytes().iter().all(good) {
            return None;
        }
        let mut bytes = [0; NAME_MAX];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Some(Self {
            bytes,
            length: name.len() as u8,
        })
    }

    /// The name as text.
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

/// The first bytes of the last request that changed anything.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memo {
    bytes: [u8; MEMO_MAX],
    length: u32,
}

impl Memo {
    fn set(&mut self, line: &str) {
        let length = line.len().min(MEMO_MAX);
        self.bytes[..length].copy_from_slice(&line.as_bytes()[..length]);
        self.length = length as u32;
    }

    /// The bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length as usize]
    }
}

/// Text in a block of its own, which only [`Text::free`] frees.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Text {
    start: NonNull<u8>,
    length: usize,
    room: usize,
}

impl Text {
    /// Empty text with room for `room` bytes.
    pub(crate) fn with_room(domain: &'static Domain, room: usize) -> Result<Self, Error> {
        Ok(Self {
            start: domain.allocate(room.max(1), 1)?,
            length: 0,
            room,
        })
    }

    /// The concatenation of `parts`.
    pub(crate) fn new(domain: &'static Domain, parts: &[&[u8]]) -> Result<Self, Error> {
        let mut text = Self::with_room(domain, parts.iter().map(|part| part.len()).sum())?;
        for part in parts {
            // SAFETY: the room is the sum of all parts.
            unsafe { text.append_unchecked(part) };
        }
        Ok(text)
    }

    /// The bytes in use.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        // SAFETY: `length` bytes were written.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    /// Bytes in use.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Its room in bytes.
    pub(crate) fn room(&self) -> usize {
        self.room
    }

    /// Appends bytes.
    ///
    /// # Safety
    ///
    /// There is room for them.
    pub(crate) unsafe fn append_unchecked(&mut self, bytes: &[u8]) {
        // SAFETY: passed on to the caller.
        unsafe {
            let end = self.start.as_ptr().add(self.length);
            ptr::copy_nonoverlapping(bytes.as_ptr(), end, bytes.len());
        }
        self.length += bytes.len();
    }

    /// Appends the same byte up to `length` bytes.
    ///
    /// # Safety
    ///
    /// There is room for `length` bytes, which are more than are in use.
    pub(crate) unsafe fn fill_unchecked(&mut self, byte: u8, length: usize) {
        // SAFETY: passed on to the caller.
        unsafe {
            let end = self.start.as_ptr().add(self.length);
            ptr::write_bytes(end, byte, length - self.length);
        }
        self.length = length;
    }

    /// Frees the block.
    ///
    /// # Safety
    ///
    /// The text is not used any more.
    pub(crate) unsafe fn free(&self, domain: &'static Domain) -> Result<(), Error> {
        // SAFETY: passed on to the caller.
        unsafe { domain.deallocate(self.start) }
    }
}

/// A note.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Note {
    /// The next one, or null.
    pub(crate) next: *mut Note,
    /// Its number.
    pub(crate) id: u32,
    /// The user's number of changes at the last change of this note.
    pub(crate) changed: u32,
    /// Its text.
    pub(crate) text: Text,
}

/// All state of a user: the root of its domain.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct User {
    /// The name.
    pub(crate) name: Name,
    /// Money.
    pub(crate) balance: i64,
    /// Result of the last `CALC`.
    pub(crate) value: i64,
    /// Requests that changed anything.
    pub(crate) changes: u64,
    /// Number of the last note added.
    pub(crate) last_id: u32,
    /// Number of notes.
    pub(crate) note_count: u32,
    /// The last request that changed anything.
    pub(crate) memo: Memo,
    /// The oldest note, or null.
    pub(crate) notes: *mut Note,
    /// The entry in the directory, in the directory's domain.
    pub(crate) entry: *mut Entry,
}

impl User {
    /// The state in a domain.
    ///
    /// # Safety
    ///
    /// The calling request holds the domain, and has no other reference to what is in it.
    #[expect(
        clippy::mut_from_ref,
        reason = "the reference is to what the domain's root leads to"
    )]
    pub(crate) unsafe fn of(domain: &'static Domain) -> Option<&'static mut Self> {
        // SAFETY: the root of a user's domain is null or a User; the rest is passed on to
        // the caller.
        unsafe { domain.root_address().cast::<Self>().as_mut() }
    }

    /// Creates a user in the request's domain, and the entry in the directory.
    pub(crate) fn create(
        request: &Request,
        name: Name,
        directory: &'static Domain,
    ) -> Result<(), Error> {
        request.enter(directory)?.keep();
        let entry = directory
            .allocate(size_of::<Entry>(), align_of::<Entry>())?
            .cast::<Entry>();
        // SAFETY: entered above; the only reference in this request.
        let Some(shared) = (unsafe { Directory::of(directory) }) else {
            return Err(Error::NotHeld);
        };
        let mut link: *mut *mut Entry = &raw mut shared.first;
        // SAFETY: the list consists of valid entries, and the request holds the directory; the new
        // entry is a fresh block of its size.
        unsafe {
            while !(*link).is_null() && (**link).name < name {
                link = &raw mut (**link).next;
            }
            entry.write(Entry {
                next: *link,
                name,
                notes: 0,
                transfers_in: 0,
                transfers_out: 0,
                changes: 0,
                labels: [0; LABELS],
            });
            *link = entry.as_ptr();
        }
        shared.users += 1;
        let user = request.alloc(Self {
            name,
            balance: 0,
            value: 0,
            changes: 0,
            last_id: 0,
            note_count: 0,
            memo: Memo {
                bytes: [0; MEMO_MAX],
                length: 0,
            },
            notes: ptr::null_mut(),
            entry: entry.as_ptr(),
        })?;
        request.set_root(Some(NonNull::from(user)))
    }

    /// Records that a request changes this user.
    pub(crate) fn touch(&mut self, line: &str) {
        self.changes += 1;
        self.memo.set(line);
    }

    /// The notes, oldest first.
    pub(crate) fn notes(&self) -> impl Iterator<Item = &Note> {
        let mut next = self.notes;
        std::iter::from_fn(move || {
            // SAFETY: the list consists of valid notes.
            let note = unsafe { next.as_ref() }?;
            next = note.next;
            Some(note)
        })
    }

    /// The note with that number, or null.
    pub(crate) fn find(&self, id: u32) -> *mut Note {
        let found = self.notes().find(|note| note.id == id);
        found.map_or(ptr::null_mut(), |note| ptr::from_ref(note).cast_mut())
    }
}

/// A user's entry in the directory.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Entry {
    /// The next one in order of name, or null.
    pub(crate) next: *mut Entry,
    /// The user's name.
    pub(crate) name: Name,
    /// Number of notes.
    pub(crate) notes: u32,
    /// Transfers received.
    pub(crate) transfers_in: u32,
    /// Transfers made.
    pub(crate) transfers_out: u32,
    /// Requests that changed the user.
    pub(crate) changes: u64,
    /// Labels.
    pub(crate) labels: [i64; LABELS],
}

/// The directory: the root of its domain.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Directory {
    /// Changes of entries.
    pub(crate) changes: u64,
    /// Number of listings.
    pub(crate) listings: u64,
    /// Entries.
    pub(crate) users: u32,
    first: *mut Entry,
}

impl Directory {
    /// The directory in a domain.
    ///
    /// # Safety
    ///
    /// The calling request holds the domain, and has no other reference to what is in it.
    #[expect(
        clippy::mut_from_ref,
        reason = "the reference is to what the domain's root leads to"
    )]
    pub(crate) unsafe fn of(domain: &'static Domain) -> Option<&'static mut Self> {
        // SAFETY: the root of the directory's domain is null or a Directory; the rest is passed on
        // to the caller.
        unsafe { domain.root_address().cast::<Self>().as_mut() }
    }

    /// Creates the directory if it does not exist; returns the names in it.
    pub(crate) fn open(request: &Request) -> Result<Vec<Name>, Error> {
        // SAFETY: the request runs on the directory's domain; the only reference in it.
        if let Some(directory) = unsafe { Self::of(request.domain()) } {
            return Ok(directory.entries().map(|entry| entry.name).collect());
        }
        let directory = request.alloc(Self {
            changes: 0,
            listings: 0,
            users: 0,
            first: ptr::null_mut(),
        })?;
        request.set_root(Some(NonNull::from(directory)))?;
        Ok(Vec::new())
    }

    /// The entries in order of name.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        let mut next = self.first;
        std::iter::from_fn(move || {
            // SAFETY: the list consists of valid entries.
            let entry = unsafe { next.as_ref() }?;
            next = entry.next;
            Some(entry)
        })
    }
}
