//! The ledger: a small multi-user server with planted bugs, and what it takes to test it.
//!
//! The servers are in `servers/`. A [`client::Client`] sends a [`command::Command`] and reads a [`reply::Reply`];
//! [`model::User`] says what the answer and the state must be; [`plan::Plan`] draws requests by seed, [`bug::Bug`]s
//! among them; [`load::run`] sends them over many connections and compares everything with the model.

pub mod arguments;
pub mod bug;
pub mod client;
pub mod command;
pub mod directory;
pub mod guest;
mod keepalive;
pub mod load;
pub mod model;
pub mod native;

pub mod plan;
pub mod program;
pub mod reply;
pub mod users;
