//! Return codes, and their counterparts in `errno`.

use crate::error::Error;
use crate::os::errno;
use crate::os::local::{REFUSED, local};
use std::ffi::{c_char, c_int};
use std::io;

/// Done.
pub const VMSRS_OK: i32 = 0;
/// The request failed: its error was suppressed and everything it wrote was
/// discarded. `vmsrs_last_failure()` has the details.
pub const VMSRS_EFAILED: i32 = -1;
/// An argument is invalid: a null pointer, a value out of range, an unknown flag, or
/// a reserved field that is not 0.
pub const VMSRS_EINVAL: i32 = -2;
/// The device exists but cannot be used (permissions, version, or the host is
/// broken). `errno` has the reason.
pub const VMSRS_EDEVICE: i32 = -3;
/// The heap of the domain was written by a library with another layout.
pub const VMSRS_ELAYOUT: i32 = -4;
/// The calling thread has no request, or `request` is not the one that it runs.
pub const VMSRS_ENOREQUEST: i32 = -5;
/// The request does not hold the domain.
pub const VMSRS_ENOTHELD: i32 = -6;
/// The calling thread has a request already. Requests do not nest.
pub const VMSRS_ENESTED: i32 = -7;
/// The request holds the domain already.
pub const VMSRS_EHELD: i32 = -8;
/// A limit is reached: 256 domains, 256 defers or 256 threads of a request, or 4096
/// suspended tasks of a process.
pub const VMSRS_ELIMIT: i32 = -9;
/// The domain belongs to another app than the request.
pub const VMSRS_EAPP: i32 = -10;
/// The lock of the domain did not become free in time.
pub const VMSRS_ETIMEOUT: i32 = -11;
/// Out of memory: the window or the domain is full.
pub const VMSRS_ENOMEM: i32 = -12;
/// The domain that the request was begun with is held to its end.
pub const VMSRS_EMAIN: i32 = -13;
/// Committed, but the host did not seal the commit in time. It will, once it answers.
pub const VMSRS_EUNSEALED: i32 = -14;
/// The process was forked, and the request belongs to its parent.
pub const VMSRS_EFORKED: i32 = -15;
/// The operating system or the driver refused. `errno` has the reason.
pub const VMSRS_ESYSTEM: i32 = -16;
/// The holder of the domain waits for a domain that this request holds. The request
/// keeps what it holds: leave some of it and try again, or give up.
pub const VMSRS_EDEADLOCK: i32 = -17;
/// The host lost content of the domain to broken memory, and the domain has no mirror.
pub const VMSRS_EDAMAGED: i32 = -18;
/// The request of the ticket or task has ended.
pub const VMSRS_EENDED: i32 = -19;
/// Memory cannot be guarded: there are no protection keys, or requests use them all.
pub const VMSRS_ENOKEYS: i32 = -20;
/// The variables of the program cannot be guarded: it binds functions lazily, has the
/// library linked in statically, or has an unusual layout.
pub const VMSRS_EVARIABLES: i32 = -21;
/// More requests of the domain have failed than its budget allows: it is refused for a
/// while.
pub const VMSRS_EQUARANTINE: i32 = -22;
/// Programs with the thread or the memory sanitizer cannot use a device: the shadow
/// memory of these lies at the addresses of the apps.
pub const VMSRS_ESANITIZER: i32 = -23;
/// The domain was deleted, by this process or another one. Opening its key makes a new
/// domain.
pub const VMSRS_EDELETED: i32 = -24;

/// Bytes that are to be leased are not as they were committed: the request has changed
/// them.
pub const VMSRS_EUNCOMMITTED: i32 = -25;

/// Describes a return code.
///
/// Like `strerror()`, but thread-safe: the string is constant and never freed.
///
/// @param code A value of enum `vmsrs_code`; any other is described as unknown.
/// @return One sentence without a full stop, never null.
///
/// cbindgen:prefix=VMSRS_TEXT
#[unsafe(no_mangle)]
pub extern "C" fn vmsrs_strerror(code: c_int) -> *const c_char {
    let text = match code {
        VMSRS_OK => c"success",
        VMSRS_EFAILED => c"the request failed",
        VMSRS_EINVAL => c"invalid argument",
        VMSRS_EDEVICE => {
            c"cannot use the VMSRS device; check its permissions and the version of the driver"
        }
        VMSRS_ELAYOUT => c"the heap of the domain was written by a library with another layout",
        VMSRS_ENOREQUEST => c"the calling thread has no request, or none of its requests failed",
        VMSRS_ENOTHELD => c"the request does not hold the domain",
        VMSRS_ENESTED => c"the calling thread has a request already; requests do not nest",
        VMSRS_EHELD => c"the request holds the domain already",
        VMSRS_ELIMIT => c"too many domains, deferred functions or threads of a request, or suspended tasks",
        VMSRS_EAPP => c"the domain belongs to another app than the request",
        VMSRS_ETIMEOUT => c"the lock of the domain did not become free in time",
        VMSRS_ENOMEM => c"out of memory: the window or the domain is full",
        VMSRS_EMAIN => c"the domain that the request was begun with is held to its end",
        VMSRS_EUNSEALED => c"committed, but the host did not seal it in time",
        VMSRS_EFORKED => c"the process was forked, and the request belongs to its parent",
        VMSRS_EENDED => c"the request of the ticket or task has ended",
        VMSRS_EDEADLOCK => c"deadlock: the holder of the domain waits for this request",
        VMSRS_EDAMAGED => c"the host lost content of the domain to broken memory",
        VMSRS_ENOKEYS => {
            c"no protection key is left; guard memory after vmsrs_open() and before threads start"
        }
        VMSRS_EVARIABLES => {
            c"cannot guard the variables of the program; link it with -z now and libvmsrs.so, or guard single pages"
        }
        VMSRS_EQUARANTINE => c"the domain is refused for a while: too many of its requests have failed",
        VMSRS_ESANITIZER => {
            c"the thread and the memory sanitizer leave no room for an app of a device; run without one (VMSRS_DEVICE=none)"
        }
        VMSRS_EDELETED => c"the domain is deleted",
        VMSRS_EUNCOMMITTED => c"the request has changed the bytes that are to be leased",
        VMSRS_ESYSTEM => c"the operating system or the driver refused; see errno",
        _ => c"unknown return code",
    };
    text.as_ptr()
}

/// Tells what the operating system or the driver refused; `errno` has the reason.
///
/// @return What the last call of the calling thread that returned `VMSRS_ESYSTEM` or
///     `VMSRS_EDEVICE` had tried, such as "registering the thread"; empty if there was
///     none, never null. The next such call of the thread overwrites it.
#[unsafe(no_mangle)]
pub extern "C" fn vmsrs_refused() -> *const c_char {
    local().refused.as_ptr().cast()
}

/// Keeps the text for [`vmsrs_refused`], and the reason for `errno`.
fn refuse(what: &str, reason: &io::Error) {
    let mut text = [0; REFUSED];
    // Without the last byte, which stays 0.
    for (to, from) in text.iter_mut().take(REFUSED - 1).zip(what.bytes()) {
        *to = from;
    }
    local().refused.set(text);
    set_errno(reason.raw_os_error().unwrap_or(libc::EIO));
}

pub(super) fn status(outcome: Result<(), Error>) -> c_int {
    match outcome {
        Ok(()) => VMSRS_OK,
        Err(error) => code(&error),
    }
}

pub(super) fn code(error: &Error) -> c_int {
    match error {
        Error::Length { .. } | Error::Argument(_) => VMSRS_EINVAL,
        Error::Device { path, source } => {
            refuse(path, source);
            VMSRS_EDEVICE
        }
        Error::Sanitizer { .. } => VMSRS_ESANITIZER,
        Error::Layout { .. } => VMSRS_ELAYOUT,
        Error::Damaged { .. } => VMSRS_EDAMAGED,
        Error::NotInRequest => VMSRS_ENOREQUEST,
        Error::NotHeld => VMSRS_ENOTHELD,
        Error::Nested => VMSRS_ENESTED,
        Error::AlreadyHeld => VMSRS_EHELD,
        Error::MainDomain => VMSRS_EMAIN,
        Error::Limit(_) => VMSRS_ELIMIT,
        Error::OtherApp => VMSRS_EAPP,
        Error::LockTimeout { .. } => VMSRS_ETIMEOUT,
        Error::WouldDeadlock => VMSRS_EDEADLOCK,
        Error::Ended => VMSRS_EENDED,
        Error::OutOfMemory { .. } | Error::NoRoom => VMSRS_ENOMEM,
        Error::Unsealed => VMSRS_EUNSEALED,
        Error::Forked => VMSRS_EFORKED,
        Error::NoKeys => VMSRS_ENOKEYS,
        Error::Variables(_) => VMSRS_EVARIABLES,
        Error::Quarantined { .. } => VMSRS_EQUARANTINE,
        Error::Deleted => VMSRS_EDELETED,
        Error::Uncommitted => VMSRS_EUNCOMMITTED,
        Error::Map { source, .. } => {
            refuse("mapping the pages of the app", source);
            VMSRS_ESYSTEM
        }
        Error::System { call, source } => {
            refuse(call, source);
            VMSRS_ESYSTEM
        }
    }
}

pub(super) fn errno_of(error: &Error) -> c_int {
    match error {
        Error::OutOfMemory { .. } | Error::NoRoom => libc::ENOMEM,
        Error::NotInRequest | Error::NotHeld => libc::EPERM,
        Error::System { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
        _ => libc::EINVAL,
    }
}

pub(super) fn set_errno(value: c_int) {
    errno::set(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn refused() -> &'static CStr {
        // SAFETY: text with a zero at its end, which the next refusal overwrites.
        unsafe { CStr::from_ptr(vmsrs_refused()) }
    }

    #[test]
    fn what_was_refused_is_told_on_the_thread_of_the_call() {
        let system = |call| {
            let source = io::Error::from_raw_os_error(libc::EBADF);
            code(&Error::System { call, source })
        };
        assert_eq!(refused(), c"");
        assert_eq!(system("registering the thread"), VMSRS_ESYSTEM);
        assert_eq!(refused(), c"registering the thread");
        assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::EBADF));
        let others = std::thread::spawn(|| refused().is_empty());
        assert!(others.join().unwrap());
        let path = "/".repeat(2 * REFUSED);
        let source = io::Error::from_raw_os_error(libc::EACCES);
        assert_eq!(code(&Error::Device { path, source }), VMSRS_EDEVICE);
        assert_eq!(refused().count_bytes(), REFUSED - 1);
        assert_eq!(code(&Error::NotHeld), VMSRS_ENOTHELD);
        assert_eq!(refused().count_bytes(), REFUSED - 1);
    }
}
