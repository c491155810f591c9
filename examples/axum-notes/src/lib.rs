//! Notes of users over HTTP, each user's in a domain of his own.
//!
//! A handler of axum is asynchronous code, and a request of VMSRS is not: it waits for its domain, and runs on a stack of its own.
//! [`request::run`] brings them together. What crashes in it, in C code too, is an answer with status 500, and
//! costs no other user anything.

pub mod morse;
pub mod notes;
pub mod request;
pub mod server;
