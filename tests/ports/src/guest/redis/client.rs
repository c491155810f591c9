//! A client of redis' protocol.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vmsrs_bed::patience;
use vmsrs_campaign::arm::{MARK, Strike};

use super::PORT;
use crate::guest::server::connect;

/// How long an answer may take; it takes milliseconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(600);
/// What a request that failed is answered with.
pub(super) const FAILED: &str = "ERR request failed: ";

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// `OK` and its like.
    Status(String),
    Error(String),
    Number(i64),
    /// A value, or none.
    Value(Option<Vec<u8>>),
    List(Vec<Reply>),
}

impl Reply {
    /// Why the request failed, if it did.
    pub(super) fn failure(&self) -> Option<&str> {
        match self {
            Self::Error(text) => text.strip_prefix(FAILED),
            _ => None,
        }
    }

    /// In few words.
    pub(super) fn words(&self) -> String {
        let text = match self {
            Self::Value(Some(value)) => format!("a value of {} bytes", value.len()),
            Self::List(list) => format!("a list of {}", list.len()),
            other => format!("{other:?}"),
        };
        text.chars().take(120).collect()
    }
}

/// The bytes of a command.
pub(super) fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

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

    /// Sends a command and reads the reply.
    pub(super) fn ask(&mut self, words: &[&[u8]]) -> Result<Reply> {
        self.send(&command(words))?;
        self.reply()
    }

    /// Reads a reply, and the injector's report before it, which may come without one.
    pub(super) fn struck(&mut self) -> (Option<Strike>, Result<Reply>) {
        let mut strike = None;
        let reply = self.report(&mut strike).and_then(|()| self.reply());
        (strike, reply)
    }

    fn report(&mut self, strike: &mut Option<Strike>) -> Result<()> {
        while self.0.fill_buf()?.first() == Some(&MARK) {
            *strike = Strike::parse(&self.line()?);
        }
        Ok(())
    }

    /// Reads a line, without its end.
    fn line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line)?;
        ensure!(line.pop() == Some(b'\n'), "the connection is closed");
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(line)
    }

    /// Reads a reply.
    pub(super) fn reply(&mut self) -> Result<Reply> {
        let line = self.line()?;
        let (first, rest) = line.split_first().context("an empty line")?;
        let text = String::from_utf8_lossy(rest).into_owned();
        Ok(match first {
            b'+' => Reply::Status(text),
            b'-' => Reply::Error(text),
            b':' => Reply::Number(text.parse()?),
            b'$' => {
                let length: i64 = text.parse()?;
                let Ok(length) = usize::try_from(length) else {
                    return Ok(Reply::Value(None));
                };
                let mut value = vec![0; length + 2];
                self.0.read_exact(&mut value)?;
                ensure!(value.ends_with(b"\r\n"), "a value without its end");
                value.truncate(length);
                Reply::Value(Some(value))
            }
            b'*' => {
                let count: i64 = text.parse()?;
                let replies = (0..count).map(|_| self.reply());
                Reply::List(replies.collect::<Result<_>>()?)
            }
            _ => bail!("a reply expected, not {:?}", String::from_utf8_lossy(&line)),
        })
    }
}
