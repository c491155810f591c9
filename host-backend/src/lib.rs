//! The VMSRS virtual machine monitor: recovery engine, devices and the vmsrs command.

pub mod cli;
pub mod control;
pub mod devices;
pub mod engine;
pub mod symbols;
pub mod vmm;
pub mod window;
