//! The virtual machine: memory, vCPUs, interrupts, firmware tables and the legacy devices that a
//! stock Linux kernel needs to boot.
//!
//! [`Vm::new`] makes a machine from a [`VmConfig`], devices are added to it, and [`Vm::run`] runs
//! it to its end.

pub mod acpi;
pub mod bus;
pub mod console;
mod console_input;
pub mod cpu;
pub mod decode;
pub mod exit;
pub mod fault;
pub mod irq;
mod kick;
pub mod loader;
pub mod memory;
pub(crate) mod poison;
pub mod power;
pub mod serial;
pub mod signals;
mod vcpu;
pub mod vm;
pub mod walk;

pub use exit::{CrashReport, ExitReason, StopHandle};
pub use power::PowerButton;
pub use vm::{MmioSlot, Vm, VmConfig, VmError};
