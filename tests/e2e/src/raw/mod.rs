//! The driver's ABI without the library, for tests of the single steps of a request.

mod app;
mod ioctl;
mod memory;
mod thread;

pub use app::{App, Domain};
pub(crate) use ioctl::ioctl as call;
pub use memory::{peek, poke};
pub use thread::Thread;
