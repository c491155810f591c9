//! The propagation study: corrupts one word of a running server's memory, and follows its effects.
//!
//! The server is the plain ledger (`tests/ledger/servers/ledger.c` without VMSRS), an ordinary program. The study works
//! like a debugger: two hardware watchpoints on the corrupted word, one for writes and one for reads and writes, stop a
//! thread after every instruction that accesses it. Requests are sent one at a time, each user on its own connection, so
//! it is always known whose request a thread serves.
//!
//! Watchpoints do not see accesses by the kernel for the program (`send`, `recv`), nor where a value goes that was read.

pub mod access;
pub mod load;
pub mod owner;
pub mod place;
pub mod report;
pub mod server;
pub mod symbols;
pub mod tracee;
pub mod trial;
