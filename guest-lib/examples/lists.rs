//! The server of docs/tutorial.md in Rust: lists for several users over TCP. A request is a line,
//! `USER COMMAND [SLOT] [TEXT]`.
//!
//! `cargo run --example lists -- 7000`

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::ptr::NonNull;

use vmsrs::{App, Domain, Error, Request, RunError};

const SLOTS: usize = 4;

/// A text, stored in a block of the user's domain.
#[repr(C)]
#[derive(Clone, Copy)]
struct Text {
    start: NonNull<u8>,
    length: usize,
}

/// One user's data: the root of the user's domain.
#[repr(C)]
#[derive(Default)]
struct List {
    saves: u32,
    item: [Option<Text>; SLOTS],
}

/// Data shared by all users: the root of its domain.
#[repr(C)]
struct Board {
    requests: u64,
}

impl Text {
    /// The bytes of the text; valid while the request holds the domain and does not free them.
    fn bytes(&self) -> &[u8] {
        // SAFETY: `new` wrote `length` bytes.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    /// Concatenates `parts` in a new block of `room` bytes.
    ///
    /// # Safety
    ///
    /// The parts must fit into `room` bytes together.
    unsafe fn new(request: &Request, room: usize, parts: &[&[u8]]) -> Result<Self, Error> {
        let start = request.domain().allocate(room.max(1), 1)?;
        let mut length = 0;
        for part in parts {
            // SAFETY: the caller guarantees that the block has room for all parts.
            unsafe {
                let end = start.add(length);
                end.copy_from_nonoverlapping(NonNull::from(*part).cast(), part.len());
            }
            length += part.len();
        }
        Ok(Self { start, length })
    }

    fn free(self, request: &Request) -> Result<(), Error> {
        // SAFETY: `new` allocated the block, and `self` was the only reference to it.
        unsafe { request.free(self.start) }
    }
}

/// `set`: stores the text in the slot.
fn set(request: &Request, list: &mut List, slot: usize, text: &str) -> Result<(), Error> {
    // SAFETY: the block is as long as the text.
    let new = unsafe { Text::new(request, text.len(), &[text.as_bytes()]) }?;
    list.item[slot]
        .replace(new)
        .map_or(Ok(()), |old| old.free(request))
}

/// `append`: appends a space and the text. BUG: allocates no room for the space.
fn append(request: &Request, list: &mut List, slot: usize, text: &str) -> Result<(), Error> {
    let old = list.item[slot];
    let bytes = old.as_ref().map_or(&[][..], Text::bytes);
    let room = bytes.len() + text.len();
    // SAFETY: none: this is the bug.
    let new = unsafe { Text::new(request, room, &[bytes, b" ", text.as_bytes()]) }?;
    list.item[slot] = Some(new);
    old.map_or(Ok(()), |old| old.free(request))
}

/// `save`: writes the list to a file. BUG: does not check for empty slots.
fn save(request: &Request, list: &mut List, user: &str) -> Result<(), Box<dyn std::error::Error>> {
    let partial = format!("{user}.partial");
    let mut file = File::create(&partial)?;
    let undo = partial.clone();
    request.defer(move || {
        // If the file cannot be removed, it stays.
        let _ = std::fs::remove_file(undo);
    })?;
    list.saves += 1;
    for item in &list.item {
        file.write_all(item.as_ref().unwrap().bytes())?;
        file.write_all(b"\n")?;
    }
    std::fs::rename(partial, format!("{user}.list"))?;
    Ok(())
}

/// The root of a domain that the request holds, allocated on first use.
fn root<T>(domain: &'static Domain, fresh: T) -> Result<NonNull<T>, Error> {
    if let Some(root) = NonNull::new(domain.root_address()) {
        return Ok(root.cast());
    }
    let root = domain
        .allocate(size_of::<T>(), align_of::<T>())?
        .cast::<T>();
    // SAFETY: the block is new, large enough and aligned.
    unsafe { root.write(fresh) };
    domain.set_root_address(root.as_ptr().cast())?;
    Ok(root)
}

/// The body of a request.
fn work(
    request: &Request,
    board: &'static Domain,
    words: (&str, &str, usize, &str),
) -> Result<String, Box<dyn std::error::Error>> {
    let (user, command, slot, text) = words;
    let entered = request.enter(board)?;
    // SAFETY: the root of this domain is always a Board, and the request holds the domain.
    unsafe { root(board, Board { requests: 0 })?.as_mut() }.requests += 1;
    entered.leave()?;
    // SAFETY: the root of a user's domain is always a List; this is its only borrow.
    let list = unsafe { root(request.domain(), List::default())?.as_mut() };
    match command {
        "set" => set(request, list, slot, text)?,
        "append" => append(request, list, slot, text)?,
        "save" => save(request, list, user)?,
        _ => {}
    }
    let items = list.item.iter().map(|item| match item {
        Some(text) => String::from_utf8_lossy(text.bytes()).into_owned(),
        None => "-".to_owned(),
    });
    let items: Vec<String> = items.collect();
    Ok(format!("ok {} {}", list.saves, items.join(", ")))
}

fn serve(app: &'static App, board: &'static Domain, stream: &TcpStream) -> io::Result<()> {
    for line in BufReader::new(stream).lines() {
        let line = line?;
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next().unwrap_or_default();
        let (user, command, slot, text) = (word(), word(), word().parse().unwrap_or(0), word());
        if slot >= SLOTS || user.is_empty() || !user.bytes().all(|byte| byte.is_ascii_lowercase()) {
            continue;
        }
        let domain = app.domain(user).map_err(io::Error::other)?;
        let answer = match domain.run(|request| work(request, board, (user, command, slot, text))) {
            Ok(answer) => answer,
            Err(RunError::Failed(failure)) => {
                format!("failed: {}, incident {}", failure.kind, failure.incident)
            }
            Err(error) => format!("refused: {error}"),
        };
        writeln!(&*stream, "{answer}")?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // SAFETY: no request in this program lends its locals to other threads.
    let app = unsafe { App::open("lists") }?;
    let board = app.domain("/board")?;
    let port = std::env::args().nth(1).unwrap_or_else(|| "7000".into());
    for stream in TcpListener::bind(format!("0.0.0.0:{port}"))?.incoming() {
        let stream = stream?;
        std::thread::spawn(move || {
            // An error means that the client has disconnected.
            let _ = serve(app, board, &stream);
        });
    }
    Ok(())
}
