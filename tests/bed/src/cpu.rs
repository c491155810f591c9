//! Features of this machine's CPU, as the kernel reports them.

use std::fs;
use std::io;

/// Whether the CPU has protection keys for user pages, and the kernel has enabled them.
///
/// # Errors
///
/// When `/proc/cpuinfo` cannot be read.
pub fn has_protection_keys() -> io::Result<bool> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    Ok(cpus.split_whitespace().any(|word| word == "ospke"))
}
