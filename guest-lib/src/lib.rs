#![doc = include_str!("../README.md")]
#![warn(clippy::pedantic)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::module_name_repetitions,
    clippy::cast_ptr_alignment
)]

mod alarm;
mod app;
mod arena;
mod audit;
mod backend;
#[expect(clippy::doc_markdown, reason = "directives for cbindgen")]
pub mod capi;
mod clib;
mod control;
mod defer;
mod device;
mod domain;
mod error;
mod evidence;
mod failure;
mod fan_out;
mod fork;
mod futex;
mod guard;
mod heap;
mod held;
#[cfg(test)]
mod hooked;
mod identity;
mod invariant;
mod keys;
mod latch;
mod layout;
mod lock;
mod members;
mod pkru;
mod record;
mod region;
mod request;
mod ring;
mod run;
mod signal;
mod slots;
mod stack;
mod state;
mod switch;
mod sync;
mod task;
mod thread;
mod ticket;
mod unprotected;
mod waits;
mod word;

pub use app::{App, Protection};
pub use arena::{ARENA_SIZE, Arena};
pub use domain::{Domain, DomainOptions};
pub use error::{Error, RunError};
pub use failure::{Failure, Kind};
pub use guard::{guard, guard_variables, open_guard};
pub use request::{Audit, Entered, Options, Request};
pub use stack::{DEFAULT_REQUEST_STACK, request_stacks, set_request_stack_size};
pub use task::{Step, Task};
pub use ticket::{JoinError, Ticket};
