//! The demonstration: the same load, fatal requests included, against the ledger without VMSRS and with it.
//!
//! [`demo::run`] boots both servers in guests on the test-bed's KVM host and shows what happened. [`integral::run`]
//! measures there what fatal requests cost ordinary ones.

pub mod cli;
pub mod demo;
pub mod guest;
mod guests;
pub mod integral;
pub mod report;
pub mod summary;
