//! Calls of the driver.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vmsrs_protocol::ioctl::{ADVICE_COMMIT, commit_length};

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

/// Commits drafts of a request, as [`ADVICE_COMMIT`] says.
///
/// # Errors
///
/// The driver's error.
pub(crate) fn commit(file: &File, tag: u64, domain: u32, flags: u32) -> io::Result<()> {
    advise(file, tag, commit_length(domain, flags), ADVICE_COMMIT)
}

/// Calls the driver with any advice.
///
/// # Errors
///
/// The driver's error.
pub(crate) fn advise(file: &File, offset: u64, length: u64, advice: i32) -> io::Result<()> {
    let fd = file.as_raw_fd();
    // SAFETY: the call takes numbers.
    let result = unsafe { libc::syscall(libc::SYS_fadvise64, fd, offset, length, advice) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
