//! The virtual machine: memory, vCPUs, interrupts, firmware tables and the legacy devices that a
//! stock Linux kernel needs to boot.

pub mod bus;
pub mod irq;
