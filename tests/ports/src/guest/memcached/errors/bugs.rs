//! Classes of published vulnerabilities, made again by edits.

use anyhow::Result;

use super::worker::Worker;
use crate::guest::errors;
use crate::guest::memcached::client::Client;

/// A packet of the binary protocol: code, lengths as they are told, and bytes.
fn packet(code: u8, key_length: u16, extras: u8, body_length: u32, bytes: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x80, code];
    packet.extend_from_slice(&key_length.to_be_bytes());
    packet.extend_from_slice(&[extras, 0, 0, 0]);
    packet.extend_from_slice(&body_length.to_be_bytes());
    packet.extend_from_slice(&[0; 12]);
    packet.extend_from_slice(bytes);
    packet
}

/// How a bug is attacked: bytes to send on a connection of its own.
type Attack = fn(u64) -> Vec<u8>;

/// The classes.
const ATTACKS: [(&str, Attack); 4] = [
    (
        "length underflow in a binary packet (CVE-2011-4971, CVE-2016-8705)",
        |turn| {
            let mut bytes = vec![0; 8];
            bytes.extend_from_slice(b"bug-underflow");
            // The body is told to be shorter than the key and the extras that come with it.
            let mut attack = packet(0x01, 13, 8, 18 - (turn % 8) as u32, &bytes);
            attack.extend_from_slice(&[b'x'; 64]);
            attack
        },
    ),
    (
        "length underflow in a binary append (CVE-2016-8704)",
        |turn| {
            let mut attack = packet(0x0e, 13, 0, 8 - (turn % 8) as u32, b"bug-underflow");
            attack.extend_from_slice(&[b'x'; 64]);
            attack
        },
    ),
    (
        "overflow by append and prepend (CVE-2016-8704, CVE-2016-8706)",
        |turn| {
            let verb = if turn % 2 == 0 { "append" } else { "prepend" };
            let value = "v".repeat(100 + (turn % 7) as usize * 300);
            let length = value.len();
            format!("set bug-value 0 0 {length}\r\n{value}\r\n{verb} bug-value 0 0 {length}\r\n{value}\r\n").into_bytes()
        },
    ),
    ("a lock of an item that is not taken", |turn| {
        let key = format!("bug-lock{turn}");
        format!("touch {key} 100\r\nset {key} 0 0 3\r\nabc\r\ntouch {key} 0\r\nincr {key} 1\r\ndelete {key}\r\n").into_bytes()
    }),
];

/// Attacks bugs that are made again by edits, while others work.
pub(in crate::guest) fn attack(each: u64) -> Result<()> {
    for (class, bytes) in ATTACKS {
        errors::attack::<Worker>(class, each, &mut |turn, sum| {
            let mut attacker = Client::connect()?;
            attacker.send(&bytes(turn))?;
            attacker.end_of_sending()?;
            let mut failed = false;
            // Until the connection is closed.
            while let Ok(line) = attacker.line() {
                if line.is_empty() {
                    break;
                }
                failed |= line.contains("request failed");
                if sum.kinds.len() < 16 {
                    let words: String = line
                        .chars()
                        .filter(|char| char.is_ascii_graphic() || *char == ' ')
                        .collect();
                    let words = words.split(", incident").next().unwrap_or_default();
                    *sum.kinds
                        .entry(words.chars().take(60).collect())
                        .or_default() += 1;
                }
            }
            Ok(failed)
        })?;
    }
    Ok(())
}
