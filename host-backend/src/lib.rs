//! The VMSRS virtual machine monitor: recovery engine, devices and the vmsrs command.

mod broken_memory;
pub mod cli;
pub mod control;
pub mod devices;
pub mod engine;
pub mod engine_handle;
pub mod host_memory;
pub mod machine;
pub mod regions;
pub mod size;
pub mod symbols;
pub mod tally;
pub mod vmm;
