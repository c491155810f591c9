//! A connection to the ledger: one line out, one line back.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
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
        self.stream
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())?;
        self.receive()
    }

    /// Waits for the next line of a longer answer; it is returned without its newline.
    ///
    /// # Errors
    ///
    /// As [`Client::ask`].
    pub fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut reply = Vec::new();
        (&mut self.stream)
            .take(REPLY_MAX)
            .read_until(b'\n', &mut reply)?;
        if reply.pop() != Some(b'\n') {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server closed the connection instead of answering",
            ));
        }
        Ok(reply)
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
