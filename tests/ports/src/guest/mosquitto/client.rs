//! A client of MQTT 5.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmsrs_bed::patience;
use vmsrs_campaign::arm::{MARK, Strike};

use super::PORT;
use crate::guest::server::connect;

/// How long an answer may take; it takes milliseconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(600);

/// Types of packets, in the upper half of their first byte.
pub(super) const CONNECT: u8 = 0x10;
pub(super) const CONNACK: u8 = 0x20;
pub(super) const PUBLISH: u8 = 0x30;
pub(super) const PUBACK: u8 = 0x40;
pub(super) const SUBSCRIBE: u8 = 0x82;
pub(super) const SUBACK: u8 = 0x90;
pub(super) const UNSUBSCRIBE: u8 = 0xa2;
pub(super) const UNSUBACK: u8 = 0xb0;
pub(super) const PINGREQ: u8 = 0xc0;
pub(super) const PINGRESP: u8 = 0xd0;
pub(super) const DISCONNECT: u8 = 0xe0;

/// A packet that was received, or the injector's line before it.
#[derive(Debug)]
pub(super) enum Received {
    /// A packet: its first byte, and what follows its length.
    Packet(u8, Vec<u8>),
    /// The injector's report.
    Strike(Option<Strike>),
    /// The server has closed the connection.
    End,
}

/// A published message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    pub(super) retained: bool,
    /// It may have been sent before.
    pub(super) again: bool,
    /// To be acknowledged by this number.
    pub(super) number: Option<u16>,
}

/// A packet with its length.
pub(super) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut length = body.len();
    loop {
        let more = length >= 128;
        packet.push((length % 128) as u8 | if more { 0x80 } else { 0 });
        length /= 128;
        if !more {
            break;
        }
    }
    packet.extend_from_slice(body);
    packet
}

/// Bytes with their length before them.
pub(super) fn counted(bytes: &[u8]) -> Vec<u8> {
    let mut text = (bytes.len() as u16).to_be_bytes().to_vec();
    text.extend_from_slice(bytes);
    text
}

/// A message with quality of service 0 or 1.
pub(super) fn publish(topic: &str, payload: &[u8], acknowledged: bool, retain: bool) -> Vec<u8> {
    let mut body = counted(topic.as_bytes());
    if acknowledged {
        body.extend_from_slice(&[0, 1]);
    }
    body.push(0);
    body.extend_from_slice(payload);
    packet(
        PUBLISH | u8::from(acknowledged) << 1 | u8::from(retain),
        &body,
    )
}

/// A subscription with quality of service 1.
pub(super) fn subscribe(topic: &str) -> Vec<u8> {
    let mut body = vec![0, 2, 0];
    body.extend(counted(topic.as_bytes()));
    body.push(1);
    packet(SUBSCRIBE, &body)
}

pub(super) fn unsubscribe(topic: &str) -> Vec<u8> {
    let mut body = vec![0, 3, 0];
    body.extend(counted(topic.as_bytes()));
    packet(UNSUBSCRIBE, &body)
}

/// How a client connects.
pub(super) struct Hello<'a> {
    pub(super) name: &'a str,
    /// Without what an earlier connection of this name has left.
    pub(super) fresh: bool,
    /// Topic and payload of its will.
    pub(super) will: Option<(&'a str, &'a [u8])>,
}

impl Hello<'_> {
    /// The packet; the session outlives the connection by an hour.
    pub(super) fn packet(&self) -> Vec<u8> {
        let mut body = counted(b"MQTT");
        let will = if self.will.is_some() { 0x04 } else { 0 };
        body.extend_from_slice(&[5, u8::from(self.fresh) << 1 | will, 0, 0]);
        body.extend_from_slice(&[5, 0x11, 0, 0, 0x0e, 0x10]);
        body.extend(counted(self.name.as_bytes()));
        if let Some((topic, payload)) = self.will {
            body.push(0);
            body.extend(counted(topic.as_bytes()));
            body.extend(counted(payload));
        }
        packet(CONNECT, &body)
    }
}

/// Reads a message from what follows its packet's length.
pub(super) fn message(first: u8, body: &[u8]) -> Result<Message> {
    let length = usize::from(u16::from_be_bytes([
        *body.first().context("a topic")?,
        *body.get(1).context("a topic")?,
    ]));
    let mut rest = body.get(2 + length..).context("a topic")?;
    let topic = String::from_utf8_lossy(&body[2..2 + length]).into_owned();
    let mut number = None;
    if first & 0x06 != 0 {
        ensure!(rest.len() > 2, "a number");
        number = Some(u16::from_be_bytes([rest[0], rest[1]]));
        rest = &rest[2..];
    }
    let properties = usize::from(*rest.first().context("properties")?);
    Ok(Message {
        topic,
        payload: rest.get(1 + properties..).context("a payload")?.to_owned(),
        retained: first & 1 != 0,
        again: first & 8 != 0,
        number,
    })
}

/// A connection.
pub(super) struct Client(BufReader<TcpStream>);

impl Client {
    /// Opens a connection, and says nothing.
    pub(super) fn open() -> Result<Self> {
        let stream = connect(PORT).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience::scaled(ANSWER_LIMIT)))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Connects; the second one tells whether the server has a session of this name.
    pub(super) fn connect(hello: &Hello<'_>) -> Result<(Self, bool)> {
        let mut client = Self::open()?;
        client.send(&hello.packet())?;
        match client.receive()? {
            Received::Packet(CONNACK, body) if body.get(1) == Some(&0) => {
                Ok((client, body[0] & 1 != 0))
            }
            other => anyhow::bail!("refused: {other:?}"),
        }
    }

    /// Sends bytes.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.0.get_mut().write_all(bytes)?)
    }

    /// Waits for a packet.
    pub(super) fn receive(&mut self) -> Result<Received> {
        let mut first = [0];
        match self.0.read(&mut first) {
            Ok(0) => return Ok(Received::End),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                return Ok(Received::End);
            }
            other => other?,
        };
        if first[0] == MARK {
            let mut line = vec![MARK];
            self.0.read_until(b'\n', &mut line)?;
            return Ok(Received::Strike(Strike::parse(line.trim_ascii_end())));
        }
        let (mut length, mut shift) = (0, 0);
        loop {
            let mut byte = [0];
            self.0.read_exact(&mut byte)?;
            length |= usize::from(byte[0] & 0x7f) << shift;
            shift += 7;
            if byte[0] & 0x80 == 0 {
                break;
            }
            ensure!(shift < 28, "a length");
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok(Received::Packet(first[0], body))
    }

    /// Acknowledges a message.
    pub(super) fn acknowledge(&mut self, message: &Message) -> Result<()> {
        match message.number {
            Some(number) => self.send(&packet(PUBACK, &number.to_be_bytes())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_as_the_protocol_has_them() {
        assert_eq!(packet(PINGREQ, &[]), [PINGREQ, 0]);
        assert_eq!(packet(PUBLISH, &[0; 127])[1], 127);
        assert_eq!(packet(PUBLISH, &[0; 128])[1..3], [0x80, 1]);
        assert_eq!(packet(PUBLISH, &[0; 16_384])[1..4], [0x80, 0x80, 1]);
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let sent = publish("a/b", b"value", true, true);
        let read = message(sent[0], &sent[2..]).unwrap();
        assert_eq!(read.topic, "a/b");
        assert_eq!(read.payload, b"value");
        assert_eq!((read.retained, read.number), (true, Some(1)));
    }
}
