//! Which file a descriptor is open on: its number may be another file's by now.

use std::os::fd::RawFd;

/// What tells an open file from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    kind: libc::mode_t,
    device: libc::dev_t,
    inode: libc::ino_t,
}

/// Whether a descriptor is a socket. Async-signal-safe.
pub(super) fn is_socket(fd: RawFd) -> bool {
    identity(fd).is_some_and(|file| file.kind == libc::S_IFSOCK)
}

/// Async-signal-safe.
pub(crate) fn identity(fd: RawFd) -> Option<Identity> {
    // SAFETY: all zero is a stat.
    let mut stat = unsafe { std::mem::zeroed::<libc::stat>() };
    // The C library's function asks by a path, which takes longer.
    // SAFETY: writes the stat.
    let found = unsafe { libc::syscall(libc::SYS_fstat, fd, &raw mut stat) };
    (found == 0).then_some(Identity {
        kind: stat.st_mode & libc::S_IFMT,
        device: stat.st_dev,
        inode: stat.st_ino,
    })
}

/// Closes a descriptor if it is still open on that file. Async-signal-safe.
pub(crate) fn close_if(fd: RawFd, file: Identity) {
    if identity(fd) == Some(file) {
        // SAFETY: the descriptor of the file that the caller was given to close.
        unsafe { libc::close(fd) };
    }
}
