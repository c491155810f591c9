//! A client of the text protocol.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmsrs_bed::patience;

use super::PORT;
use crate::guest::server::connect;

/// How long an answer may take; it takes milliseconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(600);

/// A connection.
pub(super) struct Client(BufReader<TcpStream>);

impl Client {
    /// Connects to the server.
    pub(super) fn connect() -> Result<Self> {
        let stream = connect(PORT).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience::scaled(ANSWER_LIMIT)))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends bytes.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.0.get_mut().write_all(bytes)?)
    }

    /// Tells the server that nothing more comes.
    pub(super) fn end_of_sending(&mut self) -> Result<()> {
        Ok(self.0.get_mut().shutdown(std::net::Shutdown::Write)?)
    }

    /// Sends a command that sets a value.
    pub(super) fn send_set(&mut self, key: &str, value: &[u8]) -> Result<()> {
        let mut command = format!("set {key} 0 0 {}\r\n", value.len()).into_bytes();
        command.extend_from_slice(value);
        command.extend_from_slice(b"\r\n");
        self.send(&command)
    }

    /// Sends a command that gets a value.
    pub(super) fn send_get(&mut self, key: &str) -> Result<()> {
        self.send(format!("get {key}\r\n").as_bytes())
    }

    /// Reads a line, without its end. Empty at the end of the connection.
    pub(super) fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line)?;
        Ok(String::from_utf8_lossy(&line)
            .trim_end_matches(['\r', '\n'])
            .to_owned())
    }

    /// Reads so many bytes and the end of their line.
    pub(super) fn value(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut value = vec![0; length + 2];
        self.0.read_exact(&mut value)?;
        ensure!(value.ends_with(b"\r\n"), "a value without its end");
        value.truncate(length);
        Ok(value)
    }

    /// Reads the answer to a `get`: the value, or `None`.
    pub(super) fn expect_value(&mut self) -> Result<Option<Vec<u8>>> {
        let line = self.line()?;
        if line == "END" {
            return Ok(None);
        }
        ensure!(line.starts_with("VALUE "), "a value expected, not {line:?}");
        let length = line.rsplit(' ').next().context("a length")?.parse()?;
        let value = self.value(length)?;
        let end = self.line()?;
        ensure!(end == "END", "END expected, not {end:?}");
        Ok(Some(value))
    }

    /// Reads an answer of a line.
    pub(super) fn expect(&mut self, expected: &str) -> Result<()> {
        let line = self.line()?;
        ensure!(line == expected, "{expected} expected, not {line:?}");
        Ok(())
    }
}
