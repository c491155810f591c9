//! Connections that notice that their peer's machine has been rebooted.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

/// Seconds of silence before the first probe, and between two probes.
const INTERVAL: libc::c_int = 1;
/// Probes that may stay unanswered: as many as Linux allows. A guest answers none while it boots, and resets the
/// connection once it is up.
const PROBES: libc::c_int = 127;

/// Makes the kernel send probes. A machine that has been rebooted resets a connection only when something arrives on
/// it, and a client that waits for an answer sends nothing.
///
/// # Errors
///
/// When the socket does not allow it.
pub(crate) fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    for (level, option, value) in [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, INTERVAL),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, INTERVAL),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, PROBES),
    ] {
        // SAFETY: the kernel reads an int from `value`, which lives until it returns.
        let code = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if code != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};

    #[test]
    fn a_connection_is_probed_every_second() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        keep_alive(&stream).unwrap();
        let mut value: libc::c_int = 0;
        let mut length = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the kernel writes an int to `value` and its size to `length`.
        let code = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_KEEPINTVL,
                (&raw mut value).cast(),
                &raw mut length,
            )
        };
        assert_eq!((code, value), (0, INTERVAL));
    }
}
