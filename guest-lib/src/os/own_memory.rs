//! Writing to the process's own memory where it may be gone, or be read-only by now.

use std::io;

/// Copies to `address`, by the kernel: an error instead of a signal if it cannot. Async-signal-safe.
///
/// # Errors
///
/// As `process_vm_writev(2)`; what it has written before stays.
///
/// # Safety
///
/// What is there may be overwritten.
pub(crate) unsafe fn write(address: u64, bytes: &[u8]) -> io::Result<()> {
    let iovec = |base: *mut libc::c_void| libc::iovec {
        iov_base: base,
        iov_len: bytes.len(),
    };
    let local = iovec(bytes.as_ptr().cast_mut().cast());
    let remote = iovec(address as *mut _);
    // SAFETY: the caller's; the kernel checks the addresses.
    let written = unsafe {
        libc::process_vm_writev(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
    };
    match usize::try_from(written) {
        Ok(written) if written == bytes.len() => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_cannot_be_written_is_an_error() {
        static CONSTANT: [u8; 1] = [3];
        let mut there = 1u8;
        // SAFETY: the variable, which nothing else uses meanwhile.
        unsafe { write((&raw mut there) as u64, &[2]) }.unwrap();
        assert_eq!(there, 2);
        for address in [8, CONSTANT.as_ptr() as u64] {
            // SAFETY: nothing is there that may be written.
            let refused = unsafe { write(address, &[4]) }.unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EFAULT));
        }
    }
}
