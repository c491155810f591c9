//! Calls of the driver.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Calls the driver.
///
/// # Errors
///
/// The driver's error.
pub(crate) fn ioctl<T>(file: &File, number: u32, argument: &mut T) -> io::Result<()> {
    // SAFETY: callers pass the structure that belongs to the number; it is valid for the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), u64::from(number), argument as *mut T) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
