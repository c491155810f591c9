//! The C interface; `include/vmsrs.h` is generated from these files, in this order.
//!
//! Handles (`vmsrs_app`, `vmsrs_domain`) are never closed: the same name or key gives the same
//! handle again, and it stays good until the process ends. A `vmsrs_request` is good only inside the
//! function that got it and only on its thread.

pub mod codes;

pub mod kinds;

pub mod app;

pub mod domain;

pub mod options;

pub mod run;

pub mod failure;

pub mod request;

pub mod heap;

pub mod members;

mod ticket;

pub mod fan_out;

pub mod task;

pub mod invariant;

pub mod guard;
