//! A connection to the ledger: one line out, one line back.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::mem;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use crate::keepalive::keep_alive;
use crate::reply::Stats;

/// Longest answer that is read; the server's own limit is lower.
const REPLY_MAX: u64 = 1 << 20;

/// How long an attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// No server was reached, or one that has been used before.
#[derive(Debug, thiserror::Error)]
#[error("no new ledger answers at {address} ({doing}); start one first")]
pub struct NoServer {
    /// Where.
    pub address: SocketAddr,
    /// What was tried.
    pub doing: &'static str,
    /// What happened.
    pub source: io::Error,
}

impl NoServer {
    /// Turns an error of a connection to `address` into this one.
    pub fn at(address: SocketAddr, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self {
            address,
            doing,
            source,
        }
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
    /// The part of an answer that has arrived.
    partial: Vec<u8>,
}

impl AsRawFd for Client {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.get_ref().as_raw_fd()
    }
}

impl Client {
    /// Connects; each answer may take `timeout`.
    ///
    /// # Errors
    ///
    /// When the connection is refused or takes too long.
    pub fn connect(address: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self {
            stream: BufReader::new(stream),
            partial: Vec::new(),
        })
    }

    /// Has the kernel notice when the server's machine has been rebooted: see [`keep_alive`].
    ///
    /// # Errors
    ///
    /// When the socket does not allow it.
    pub fn keep_alive(&self) -> io::Result<()> {
        keep_alive(self.stream.get_ref())
    }

    /// A handle with which another thread can shut the connection down.
    ///
    /// # Errors
    ///
    /// When the process is out of descriptors.
    pub fn handle(&self) -> io::Result<TcpStream> {
        self.stream.get_ref().try_clone()
    }

    /// Sends a line and waits for the answer, a line that is returned without its newline.
    ///
    /// # Errors
    ///
    /// When the connection is lost, or the answer does not come in time.
    pub fn ask(&mut self, line: &str) -> io::Result<Vec<u8>> {
        self.send(line)?;
        self.receive()
    }

    /// Sends a line.
    ///
    /// # Errors
    ///
    /// When the connection is lost.
    pub fn send(&mut self, line: &str) -> io::Result<()> {
        let line = format!("{line}\n");
        self.stream.get_mut().write_all(line.as_bytes())
    }

    /// Waits for the next line of a longer answer; it is returned without its newline.
    ///
    /// # Errors
    ///
    /// As [`Client::ask`].
    pub fn receive(&mut self) -> io::Result<Vec<u8>> {
        let room = REPLY_MAX - self.partial.len() as u64;
        (&mut self.stream)
            .take(room)
            .read_until(b'\n', &mut self.partial)?;
        let mut reply = mem::take(&mut self.partial);
        if reply.pop() != Some(b'\n') {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server closed the connection instead of answering",
            ));
        }
        Ok(reply)
    }

    /// The next line of an answer, if all of it has arrived; see [`Client::set_nonblocking`].
    ///
    /// # Errors
    ///
    /// When the connection is lost.
    pub fn poll(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.receive() {
            Ok(line) => Ok(Some(line)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the connection non-blocking, for [`Client::poll`].
    ///
    /// # Errors
    ///
    /// When the socket does not allow it.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        self.stream.get_ref().set_nonblocking(true)
    }

    /// Asks for the server's statistics.
    ///
    /// # Errors
    ///
    /// As [`Client::ask`]; also when the answer is malformed.
    pub fn stats(&mut self) -> io::Result<Stats> {
        Stats::parse(&self.ask("STATS")?).map_err(io::Error::other)
    }
}
