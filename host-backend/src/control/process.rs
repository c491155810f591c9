//! The process of a VM, seen by a client that waits for its end.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The process that listens at a control socket.
#[derive(Debug)]
pub struct VmProcess {
    descriptor: OwnedFd,
}

impl VmProcess {
    /// The process at the other end of `stream`.
    pub(super) fn of_peer(stream: &UnixStream) -> io::Result<Self> {
        let mut peer = libc::ucred {
            pid: 0,
            uid: 0,
            gid: 0,
        };
        let mut length = size_of_val(&peer) as libc::socklen_t;
        // SAFETY: `peer` is valid for the length that is given.
        let read = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut peer).cast(),
                &raw mut length,
            )
        };
        if read < 0 {
            return Err(io::Error::last_os_error());
        }
        // A process of another namespace of process numbers has the number 0, which is refused here.
        // SAFETY: the call has no memory effects.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, peer.pid, 0) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: the descriptor was just returned by the kernel and has no other owner.
            descriptor: unsafe { OwnedFd::from_raw_fd(descriptor as libc::c_int) },
        })
    }

    /// Waits for its end; false if it has not come after `timeout`.
    ///
    /// # Errors
    ///
    /// Fails when the system refuses to wait.
    pub fn has_ended_within(&self, timeout: Duration) -> io::Result<bool> {
        let mut end = libc::pollfd {
            fd: self.descriptor.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let timeout = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the array of one is valid.
        match unsafe { libc::poll(&raw mut end, 1, timeout) } {
            0.. => Ok(end.revents != 0),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_runs_has_not_ended() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let process = VmProcess::of_peer(&ours).unwrap();
        assert!(!process.has_ended_within(Duration::ZERO).unwrap());
    }
}
