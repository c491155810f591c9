//! Sleeping until a word changes (futex(2)), within the process.

use std::io;
use std::ptr;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Sleeps while the word has that value: until it is woken, a signal's handler has run, or the time
/// is over. May also return for no reason. Async-signal-safe.
///
/// # Errors
///
/// What the kernel says, for example `EINTR`, `EAGAIN` (another value), `ETIMEDOUT`.
pub(crate) fn wait(word: &AtomicU32, value: u32, limit: Duration) -> io::Result<()> {
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    // SAFETY: FUTEX_WAIT reads the word and the timeout, both alive.
    let slept = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            value,
            ptr::from_ref(&timeout),
        )
    };
    if slept < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Wakes all that sleep on the word. Async-signal-safe.
pub(crate) fn wake_all(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE takes the address of the word alone.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            i32::MAX,
        );
    }
}
