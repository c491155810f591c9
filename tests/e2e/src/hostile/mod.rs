//! A hostile driver of the VMSRS device, in user space: it programs registers and rings directly and skips every
//! check of Linux's virtio core.
//!
//! The test module in the guest takes the driver's place and hands this process the registers and a piece of RAM.

mod chain;
mod device;
mod message;
mod registers;

pub use chain::{Descriptor, INDIRECT, NEXT, WRITE, linked};
pub use device::{Answer, CONTROL, Device, EVENT, MESSAGE, QUEUE_SIZE, REPLY, TABLE};
pub use message::{message, open_app};
pub use registers::{register, status};
