//! The fault campaign: makes thousands of errors of every kind in a server's requests, compares everything with a model
//! of every user, and gives a verdict. See `docs/campaign.md`.
//!
//! [`run::run`] makes the errors and compares; [`campaign::run`] boots the server for it in a guest on the test-bed's KVM
//! host.

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
mod wild;
mod worker;
mod world;

pub use image::build_injector;
