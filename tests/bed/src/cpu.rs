//! What this machine's CPU has, as its kernel tells it.

use std::fs;
use std::io;

/// Whether there are protection keys for user pages, and the kernel has turned them on.
///
/// # Errors
///
/// When `/proc/cpuinfo` cannot be read.
pub fn has_protection_keys() -> io::Result<bool> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    Ok(cpus.split_whitespace().any(|word| word == "ospke"))
}
