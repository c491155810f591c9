//! The fault campaign: thousands of errors of every kind in a server's requests, a model of every
//! user beside it, and a verdict. See `docs/campaign.md`.
//!
//! [`run::run`] makes the errors and holds everything against the model; [`campaign::run`] boots the
//! server in a guest on the test-bed's KVM host for it.

pub mod arm;
pub mod campaign;
mod cause;
mod claim;
pub mod class;
pub mod cli;
mod console;
mod failures;
pub mod guest;
pub mod host;
mod image;
pub mod kind;
mod life;
pub mod matrix;
pub mod options;
pub mod outcome;
pub mod plan;
pub mod progress;
pub mod report;
pub mod run;
pub mod table;
pub mod task;
pub mod view;
mod worker;
mod world;
