//! The demonstration: a load with fatal requests in it, a model beside it, and a comparison.
//!
//! [`load::run`] makes the load against a ledger server (`tests/servers/`), wherever that runs.
//! [`demo::run`] boots the server in guests on the test-bed's KVM host and shows what happened.
//! [`integral::run`] measures there what ordinary requests notice of the fatal ones.

pub mod build;
pub mod chart;
pub mod cli;
pub mod client;
pub mod command;
pub mod demo;
pub mod guest;
mod guests;
pub mod integral;
pub mod kind;
pub mod load;
pub mod log;
pub mod machine;
pub mod model;
pub mod native;
pub mod outcome;
pub mod pace;
pub mod percentile;
pub mod plan;
pub mod reply;
pub mod report;
pub mod steps;
pub mod table;
mod watch;
