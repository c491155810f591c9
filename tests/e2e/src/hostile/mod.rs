//! A hostile driver of the VMSRS device, in user space: it programs the registers and rings directly and skips every
//! check of Linux's virtio core.
//!
//! The test module in the guest takes the driver's place and hands this process the registers and a piece of RAM.

mod device;

pub use device::*;
