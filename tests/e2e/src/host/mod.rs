//! The host's side: boots guests with `vmsrs run`, runs behaviours and tells the results.
//!
//! It runs in the job folder of the test-bed, which has `vmsrs`, `vmlinux` and `guest.img`.

mod connection;
mod console;
mod guest;
mod runner;

pub use guest::Guest;
pub use runner::run_all;
