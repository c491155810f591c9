//! The VMSRS virtual machine monitor: recovery engine, devices and the vmsrs command.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod broken_memory;
mod cgroup;
pub mod cli;
pub mod control;
pub mod devices;
pub mod engine;
pub mod engine_handle;
pub mod host_memory;
pub mod machine;
mod output;
pub mod regions;
mod sandbox;
mod service;
pub mod size;
pub mod symbols;
pub mod tally;
mod vitals;
pub mod vmm;
