//! Connections that notice when the machine behind them was booted anew.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

/// Seconds without a word until the other side is asked whether it is still there, and between two
/// such questions.
const EVERY: libc::c_int = 1;
/// Questions that may be without an answer: the most that Linux allows. A guest that is booted anew
/// answers none meanwhile, and that none of this connection's is known to it when it is up.
const MOST: libc::c_int = 127;

/// Has the kernel ask regularly. A machine that was booted anew closes a connection only when
/// something comes over it, and who waits for an answer sends nothing.
///
/// # Errors
///
/// When the socket does not allow it.
pub(crate) fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    for (level, option, value) in [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, EVERY),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, EVERY),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, MOST),
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
    fn a_connection_is_asked_every_second() {
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
        assert_eq!((code, value), (0, EVERY));
    }
}
