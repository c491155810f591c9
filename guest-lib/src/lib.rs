#![doc = include_str!("../README.md")]
#![warn(clippy::pedantic)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::module_name_repetitions,
    clippy::cast_ptr_alignment
)]

// What everything may use.
mod error;
mod failure;
mod sync;

// The layers, lowest first: each knows only those above it in this list (tests/layers.rs).
mod os;

mod shared;

mod heap;

mod state;

mod thread;

mod run;

mod api;

#[expect(clippy::doc_markdown, reason = "directives for cbindgen")]
pub mod capi;

#[cfg(test)]
mod mock;

#[cfg(feature = "allocator-api2")]
pub use api::allocator::DomainAllocator;
pub use api::app::Protection;
pub use api::domain::DomainOptions;
pub use api::guard::{guard, guard_variables, open_guard};
pub use api::inquiry::{held_domain, in_request, is_domain_address, usable_size};
pub use api::lease::Lease;
pub use api::mutex::Mutex;
pub use api::options::{Audit, Options};
pub use api::request::{Entered, stack_bounds};
pub use api::slab::CHUNK_OVERHEAD;
pub use api::task::{Step, Task};
pub use api::ticket::{JoinError, Ticket};
pub use api::whole::DomainInfo;
pub use error::{Error, RunError};
pub use failure::{Failure, Kind};
pub use run::health::{Health, health};
pub use run::request::Request;
pub use state::budget::Budget;
pub use state::domain::{App, Domain};
pub use thread::arena::{ARENA_SIZE, Arena};
pub use thread::stack::{DEFAULT_REQUEST_STACK, request_stacks, set_request_stack_size};
