//! The test module in the guest that makes its kernel write where it must not.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

/// The module's directory in debugfs.
pub const DEBUGFS: &str = "/sys/kernel/debug/vmsrs_stray";

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
