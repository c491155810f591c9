//! The Rust interface.

#[cfg(feature = "allocator-api2")]
pub(crate) mod allocator;
pub(crate) mod app;
pub(crate) mod domain;
pub(crate) mod fan_out;
pub(crate) mod guard;
pub(crate) mod inquiry;
pub(crate) mod lease;
pub(crate) mod mutex;
pub(crate) mod options;
pub(crate) mod request;
pub(crate) mod slab;
pub(crate) mod task;
pub(crate) mod ticket;
pub(crate) mod whole;
