//! The driver's file: opening and mapping it, and what its calls answer.

use std::ffi::CString;
use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use vmsrs_protocol::device::ABI_VERSION;
use vmsrs_protocol::ioctl::{
    ADVICE_COMMIT, IOCTL_ANSWER, IOCTL_INFO, IOCTL_OPEN_APP, IoctlInfo, IoctlOpenApp, commit_length,
};
use vmsrs_protocol::{MAX_APPS, NAME_MAX, NONE};

fn checked(value: i32) -> io::Result<()> {
    if value < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Calls the driver's file, if the descriptor is one. Returns the number of the file's app.
///
/// # Errors
///
/// The call's; `ENOTTY` if another file has answered.
///
/// # Safety
///
/// `argument` is what the call takes.
pub(super) unsafe fn call<T>(fd: RawFd, number: u32, argument: *mut T) -> io::Result<u32> {
    // SAFETY: passed on to the caller.
    let answer = unsafe { libc::ioctl(fd, libc::c_ulong::from(number), argument) };
    app_of(answer.into())
}

/// Commits drafts of a request, as [`ADVICE_COMMIT`] says. Otherwise as [`call`].
pub(super) fn commit(fd: RawFd, tag: u64, domain: u32, flags: u32) -> io::Result<u32> {
    let length = commit_length(domain, flags);
    // posix_fadvise() returns 0 for every answer but an error, and so would hide the app.
    // SAFETY: the call takes numbers, and other files refuse the advice.
    let answer = unsafe { libc::syscall(libc::SYS_fadvise64, fd, tag, length, ADVICE_COMMIT) };
    app_of(answer)
}

/// Finds out whether commits reach the driver. A filter of system calls may be older than they are.
///
/// # Errors
///
/// That of the kernel or of the filter.
pub(super) fn can_commit(fd: RawFd) -> io::Result<()> {
    // No request has this tag.
    match commit(fd, 0, NONE, 0) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// The app that an answer names.
fn app_of(answer: libc::c_long) -> io::Result<u32> {
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    u32::try_from(answer)
        .ok()
        .and_then(|answer| answer.checked_sub(IOCTL_ANSWER))
        .filter(|&app| app <= MAX_APPS)
        .ok_or_else(another_files)
}

/// What a call fails with that another file has answered.
#[cold]
pub(super) fn another_files() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOTTY)
}

/// Whether a descriptor is one of a file of that app. Async-signal-safe.
pub(super) fn is_of_app(fd: RawFd, app: u32) -> bool {
    let mut info = IoctlInfo::default();
    // SAFETY: the call's argument.
    unsafe { call(fd, IOCTL_INFO, &raw mut info) }.is_ok_and(|answered| answered == app)
}

/// See [`open_app`].
pub(super) const ALL_NOTED: u64 = u64::MAX;

pub(super) fn open_file(path: &CString) -> io::Result<RawFd> {
    // SAFETY: a C string.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    checked(fd).map(|()| fd)
}

/// Opens the app on a file, for a process that has noted the deletions of domains up to that number; [`ALL_NOTED`] for one that
/// knows no domain.
pub(super) fn open_app(fd: RawFd, name: &[u8; NAME_MAX], noted: u64) -> io::Result<IoctlOpenApp> {
    let mut app = IoctlOpenApp {
        name: *name,
        base: 0,
        length: 0,
        pages_offset: 0,
        locks_offset: 0,
        locks_length: 0,
        abi_version: ABI_VERSION,
        app: 0,
        deletions: noted,
    };
    // SAFETY: the call's argument.
    unsafe { call(fd, IOCTL_OPEN_APP, &raw mut app) }?;
    Ok(app)
}

/// Protection of most mappings.
pub(super) const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Maps `length` bytes of the device; at exactly `address` unless that is null.
pub(super) fn map(
    fd: RawFd,
    address: *mut u8,
    length: u64,
    protection: i32,
    offset: u64,
) -> io::Result<NonNull<u8>> {
    let fixed = if address.is_null() {
        0
    } else {
        libc::MAP_FIXED_NOREPLACE
    };
    let (Ok(length), Ok(offset)) = (usize::try_from(length), libc::off_t::try_from(offset)) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    // SAFETY: a new mapping that replaces none.
    let place = unsafe {
        libc::mmap(
            address.cast(),
            length,
            protection,
            libc::MAP_SHARED | fixed,
            fd,
            offset,
        )
    };
    if place == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    if !address.is_null() && place.cast() != address {
        // Kernels before 4.17 take the address as a hint only.
        // SAFETY: the mapping just made.
        unsafe { libc::munmap(place, length) };
        return Err(io::Error::from_raw_os_error(libc::EEXIST));
    }
    NonNull::new(place.cast()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use vmsrs_protocol::ioctl::{
        IOCTL_ABANDON, IOCTL_DELETE, IOCTL_DISCARD, IOCTL_DRAFTS, IOCTL_FAIL, IOCTL_LEASE,
        IOCTL_LOCK_WAIT, IOCTL_LOCK_WAKE, IOCTL_RESUME, IOCTL_SUSPEND, IOCTL_TAGS,
    };

    /// Calls that are made without a look at the descriptor.
    const UNCHECKED: [u32; 12] = [
        IOCTL_TAGS,
        IOCTL_FAIL,
        IOCTL_DISCARD,
        IOCTL_LOCK_WAIT,
        IOCTL_LOCK_WAKE,
        IOCTL_INFO,
        IOCTL_SUSPEND,
        IOCTL_RESUME,
        IOCTL_ABANDON,
        IOCTL_DRAFTS,
        IOCTL_DELETE,
        IOCTL_LEASE,
    ];

    #[test]
    fn no_other_file_takes_a_call() {
        let open = |path: &str| open_file(&CString::new(path).unwrap()).unwrap();
        let mut ends = [[-1; 2]; 2];
        // SAFETY: each call makes a descriptor, or two in an array of two.
        let mut files = unsafe {
            assert_eq!(libc::pipe(ends[0].as_mut_ptr()), 0);
            let made = libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, ends[1].as_mut_ptr());
            assert_eq!(made, 0);
            vec![
                libc::eventfd(0, 0),
                libc::epoll_create1(0),
                libc::timerfd_create(libc::CLOCK_MONOTONIC, 0),
                libc::inotify_init(),
                libc::memfd_create(c"".as_ptr(), 0),
                libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0),
                libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0),
                libc::open(c"/".as_ptr(), libc::O_RDONLY),
                libc::open(c"/proc/self/stat".as_ptr(), libc::O_RDONLY),
                open("/dev/null"),
                open("/dev/zero"),
            ]
        };
        // SAFETY: as above. A sandbox may have no terminals.
        files.extend(
            [unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY) }]
                .iter()
                .filter(|&&fd| fd >= 0),
        );
        for fd in files.into_iter().chain(ends.into_iter().flatten()) {
            assert!(fd >= 0);
            // SAFETY: made above, and nobody else has it.
            let file = unsafe { OwnedFd::from_raw_fd(fd) };
            for number in UNCHECKED {
                let mut argument = [0xa5_u8; 512];
                // SAFETY: room for every call's argument.
                let refused = unsafe { call(file.as_raw_fd(), number, argument.as_mut_ptr()) };
                assert!(refused.is_err(), "{number:#x} of {fd}");
                assert_eq!(argument, [0xa5; 512], "{number:#x} of {fd}");
            }
            for domain in [0, NONE] {
                assert!(
                    commit(file.as_raw_fd(), 1 << 40, domain, 0).is_err(),
                    "{fd}"
                );
            }
        }
    }
}
