//! The propagation study: one word of a running server's memory is corrupted, and followed.
//!
//! The server is the plain ledger (`tests/ledger/servers/ledger.c` without VMSRS), an ordinary program. Its
//! load and the model of its state are the demonstration's. The study is a debugger to it: two
//! hardware watchpoints on the corrupted word, one for writes and one for reads and writes, stop the
//! thread behind every instruction that touches it. Requests are sent one at a time, each
//! user on a connection of its own, so it is always known whose request a thread works for.
//!
//! Watchpoints see what the program does. They do not see what the kernel reads and writes for it
//! (`send`, `recv`), nor where a value goes that was read.

pub mod access;
pub mod client;
pub mod load;
pub mod owner;
pub mod place;
pub mod report;
pub mod server;
pub mod symbols;
pub mod tracee;
pub mod trial;
