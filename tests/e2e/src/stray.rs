//! The test module in the guest that makes its kernel write where it must not.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use vmsrs_protocol::PAGE_SIZE;

use crate::mapping;

/// The module's directory in debugfs.
pub const DEBUGFS: &str = "/sys/kernel/debug/vmsrs_stray";

/// A shared memory region of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// Drafts, and commits that are not sealed yet.
    Pool,
    /// Sealed pages.
    Vault,
}

impl Region {
    /// The module's word for it.
    fn name(self) -> &'static str {
        match self {
            Self::Pool => "pool",
            Self::Vault => "vault",
        }
    }

    /// Maps the region's first `frames` frames writable, as a corrupt page table of the guest would. The mapping lasts
    /// until the process ends.
    ///
    /// # Errors
    ///
    /// When the module is not loaded, or the region has fewer frames.
    pub fn map(self, frames: usize) -> Result<*mut u8> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(Path::new(DEBUGFS).join(self.name()))?;
        let mapped = mapping::file(&file, frames * PAGE_SIZE as usize)
            .with_context(|| format!("map {frames} frames of the {}", self.name()))?;
        Ok(mapped.as_ptr())
    }

    /// Makes the kernel store a byte at an offset into a frame. Returns the error number if the store was stopped.
    ///
    /// # Errors
    ///
    /// When the module is not loaded.
    pub fn store(self, frame: u32, offset: u32, value: u8) -> Result<Option<i32>> {
        let file = Path::new(DEBUGFS).join("store");
        let mut file = OpenOptions::new().write(true).open(file)?;
        let command = format!("{} {frame} {offset} {value} nofault", self.name());
        let result = file.write_all(command.as_bytes());
        Ok(result.err().and_then(|error| error.raw_os_error()))
    }
}

/// Loads the module unless it is loaded already.
///
/// # Errors
///
/// When it does not load.
pub fn load_stray_module() -> Result<()> {
    if Path::new(DEBUGFS).exists() {
        return Ok(());
    }
    let script = "mount -t debugfs debugfs /sys/kernel/debug && insmod /lib/modules/vmsrs_stray.ko";
    let status = Command::new("sh").args(["-c", script]).status()?;
    ensure!(status.success(), "cannot load the test module: {status}");
    Ok(())
}
