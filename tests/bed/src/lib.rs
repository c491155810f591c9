#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod accelerator;
mod apt;
mod bed;
mod cache;
pub mod cc;
mod command;
pub mod console;
pub mod cpu;
mod debug_kernel;
mod direct;
mod error;
mod flavour;
pub mod guest;
mod image;
mod injection;
mod job;
mod kernel;
pub mod kmod;
mod ldd;
pub mod modules;
mod monitor;
mod nested;
pub mod patience;
pub mod process;
mod program;
pub mod project;
mod qemu;
mod release;
pub mod results;
mod stream;
pub mod tools;
pub mod vault;
pub mod vmlinux;

pub use accelerator::{Accelerator, direct_kvm};
pub use bed::{Bed, Progress};
pub use cache::Cache;
pub use command::shell_quote;
pub use error::{Error, Result};
pub use flavour::Flavour;
pub use image::Image;
pub use job::{Event, Job, Outcome, System};
pub use kernel::{Kernel, Series};
pub use program::Program;
pub use release::Release;
