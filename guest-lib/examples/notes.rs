//! A minimal server for users with notes. One request has a bug; the next one is not affected.
//!
//! `cargo run --example notes`

use std::ptr::NonNull;
use vmsrs::{App, Domain, Request, RunError};

/// The root of a user's domain: everything is reached from here.
struct Notes {
    count: u32,
    total_length: usize,
}

/// The user's notes, created if missing. One borrow at a time: the pointer leads to the same
/// notes each time.
fn notes(request: &Request) -> Result<NonNull<Notes>, vmsrs::Error> {
    let root = match request.root::<Notes>() {
        Some(root) => root,
        None => {
            let fresh = NonNull::from(request.alloc(Notes {
                count: 0,
                total_length: 0,
            })?);
            request.set_root(Some(fresh))?;
            fresh
        }
    };
    Ok(root)
}

fn add_note(request: &Request, text: &str) -> Result<u32, vmsrs::Error> {
    // SAFETY: the root of these domains is always a Notes; the request holds the domain, and this is
    // its only borrow.
    let notes = unsafe { notes(request)?.as_mut() };
    notes.count += 1;
    notes.total_length += text.len();
    Ok(notes.count)
}

/// The mean length of a user's notes. BUG: divides by zero for a user without notes.
fn mean(request: &Request) -> Result<u32, vmsrs::Error> {
    // SAFETY: the root of these domains is always a Notes; the request holds the domain, and this is
    // its only borrow.
    let notes = unsafe { notes(request)?.as_mut() };
    Ok(u32::try_from(notes.total_length).unwrap_or(u32::MAX) / notes.count)
}

fn serve(user: &'static Domain, work: impl FnOnce(&Request) -> Result<u32, vmsrs::Error>) {
    match user.run(work) {
        Ok(value) => println!("ok {value}"),
        Err(RunError::Failed(failure)) => println!("{failure}"),
        Err(error) => println!("error: {error}"),
    }
}

fn main() -> Result<(), vmsrs::Error> {
    // SAFETY: no request in this program lends its locals to other threads.
    let app = unsafe { App::open("notes") }?;
    let alice = app.domain("alice")?;
    serve(alice, mean);
    serve(alice, |request| add_note(request, "buy milk"));
    serve(alice, mean);
    Ok(())
}
