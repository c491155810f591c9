//! The C interface.
//!
//! `include/vmsrs.h` is generated from these files; `vmsrs.h.in` says what goes where. The comments are
//! those of the header: they speak to callers in C, and the sections on safety to callers in Rust.

pub mod app;
pub mod codes;
pub mod domain;
pub mod failure;
pub mod fan_out;
pub mod guard;
pub mod health;
pub mod heap;
pub mod inquiry;
pub mod invariant;
pub mod kinds;
pub mod lease;
pub mod members;
pub mod mutex;
pub mod options;
pub mod request;
pub mod run;
pub mod slab;
pub mod task;
mod ticket;
pub mod whole;
