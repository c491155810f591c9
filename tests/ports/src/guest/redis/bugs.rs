//! Classes of published vulnerabilities, made again by edits.

use anyhow::Result;

use super::client::{Client, Reply};
use super::worker::Worker;
use crate::guest::errors;

/// Characters of the deep pattern's key: each is a call more.
const DEPTH: usize = 40_000;
/// Registers of a HyperLogLog, and how many of them a byte of its sparse form names at most.
const REGISTERS: usize = 16_384;
const RUN: usize = 4;

type Words = Vec<Vec<u8>>;

/// How a bug is attacked: commands, of which one fails.
struct Attack {
    class: &'static str,
    commands: fn(u64) -> Vec<Words>,
}

fn words(text: &str) -> Words {
    text.split(' ')
        .map(|word| word.as_bytes().to_vec())
        .collect()
}

/// Stores a sparse HyperLogLog with more registers than there are.
fn store_registers(key: &str, turn: u64) -> Words {
    let mut value = b"HYLL\x01".to_vec();
    value.resize(16, 0);
    value.resize(16 + REGISTERS / RUN + 8 + (turn as usize % 50) * 40, 0xff);
    let mut set = words(&format!("SET {key}"));
    set.push(value);
    set
}

const ATTACKS: [Attack; 6] = [
    Attack {
        class: "overflow of a block by a HyperLogLog (CVE-2019-10192, CVE-2025-32023)",
        commands: |turn| {
            vec![
                store_registers("bug-registers", turn),
                words("PFDEBUG TODENSE bug-registers"),
            ]
        },
    },
    Attack {
        class: "overflow of the stack's array by a HyperLogLog (CVE-2019-10193, CVE-2025-32023)",
        commands: |turn| {
            vec![
                store_registers("bug-registers", turn),
                words("PFCOUNT bug-registers bug-registers"),
            ]
        },
    },
    Attack {
        class: "overflow by a stream's claims (CVE-2022-31144)",
        commands: |turn| {
            let mut commands = vec![
                words("DEL bug-stream"),
                words("XGROUP CREATE bug-stream group $ MKSTREAM"),
            ];
            let entries = 10 + turn % 10;
            commands
                .extend((1..=entries).map(|entry| words(&format!("XADD bug-stream {entry} a b"))));
            commands.push(words("XREADGROUP GROUP group one STREAMS bug-stream >"));
            commands.extend((1..=entries).map(|entry| words(&format!("XDEL bug-stream {entry}"))));
            commands.push(words("XAUTOCLAIM bug-stream group two 0 0 COUNT 4"));
            commands
        },
    },
    Attack {
        class: "recursion of a pattern without an end (CVE-2024-31228)",
        commands: |_| {
            let mut set = words("SET");
            set.push(vec![b'a'; DEPTH]);
            set.push(b"value".to_vec());
            vec![set, vec![b"KEYS".to_vec(), b"*a".repeat(DEPTH)]]
        },
    },
    Attack {
        class: "an assertion by a key that is set twice (CVE-2023-28425)",
        commands: |turn| vec![words(&format!("MSETNX bug-{turn} one bug-{turn} two"))],
    },
    Attack {
        class: "DEBUG SEGFAULT",
        commands: |_| vec![words("DEBUG SEGFAULT")],
    },
];

/// Attacks bugs that are made again by edits, while others work.
pub(super) fn attack(each: u64) -> Result<()> {
    for attack in &ATTACKS {
        errors::attack::<Worker>(attack.class, each, &mut |turn, sum| {
            let mut attacker = Client::connect()?;
            let mut failed = false;
            let mut last = Reply::Value(None);
            for command in (attack.commands)(turn) {
                let command: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
                last = attacker.ask(&command)?;
                failed |= last.failure().is_some();
            }
            let what = match last.failure() {
                Some(why) => why
                    .split(", incident")
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
                None => last.words(),
            };
            *sum.kinds.entry(what).or_default() += 1;
            // The attacker's connection goes on.
            attacker.ask(&[b"PING"])?;
            Ok(failed)
        })?;
    }
    Ok(())
}
