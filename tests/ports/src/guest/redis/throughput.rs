//! What commands cost the server: CPU time by a clock that counts instructions.
//!
//! A client with several connections sends a command on each and then reads all replies, so the server finds several
//! connections ready, as it does under load.

use anyhow::{Context, Result, ensure};
use vmsrs_bed::process;

use super::client::{Client, Reply, command};
use super::start;
use crate::guest::server::{committed, seal};
use crate::guest::tell;
use crate::plan::{Finding, Mode, Throughput};

/// Connections of the client.
const CONNECTIONS: usize = 8;
/// Keys that commands are spread over.
const KEYS: u64 = 2048;
/// Sizes of values, and by what the number of commands is divided.
const VALUES: [(usize, u32); 2] = [(100, 1), (4096, 2)];

/// A command of a measurement: its words, with the number of its key.
type Command = fn(u64, &[u8]) -> Vec<u8>;

const MIXES: [(&str, Command); 8] = [
    ("PING", |_, _| command(&[b"PING"])),
    ("SET", |key, value| {
        command(&[b"SET", format!("key:{key:08}").as_bytes(), value])
    }),
    ("GET", |key, _| {
        command(&[b"GET", format!("key:{key:08}").as_bytes()])
    }),
    ("INCR", |key, _| {
        command(&[b"INCR", format!("count:{key:08}").as_bytes()])
    }),
    ("HSET", |key, value| {
        let hash = format!("hash:{:08}", key % 64);
        let field = format!("field:{:02}", key / 64 % 32);
        command(&[b"HSET", hash.as_bytes(), field.as_bytes(), value])
    }),
    ("LPUSH", |key, value| {
        command(&[b"LPUSH", format!("list:{:08}", key % 64).as_bytes(), value])
    }),
    ("LPOP", |key, _| {
        command(&[b"LPOP", format!("list:{:08}", key % 64).as_bytes()])
    }),
    ("ZADD", |key, _| {
        let score = format!("{}", key % 997);
        let member = format!("member:{key:08}");
        command(&[b"ZADD", b"zset", score.as_bytes(), member.as_bytes()])
    }),
];

/// Spreads commands over keys.
fn key(turn: u64) -> u64 {
    turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & (KEYS - 1)
}

/// Sends at least so many commands; returns how many.
fn run(
    clients: &mut [Client],
    make: Command,
    value: &[u8],
    commands: u32,
    turn: &mut u64,
) -> Result<u32> {
    let mut sent = 0;
    while sent < commands {
        for client in clients.iter_mut() {
            *turn += 1;
            client.send(&make(key(*turn), value))?;
        }
        for client in clients.iter_mut() {
            let reply = client.reply()?;
            ensure!(!matches!(reply, Reply::Error(_)), "{}", reply.words());
        }
        sent += CONNECTIONS as u32;
    }
    Ok(sent)
}

/// Measures both builds.
pub(super) fn measure(commands: u32) -> Result<()> {
    for mode in Mode::ALL {
        let server = start(&format!("/{}/redis-server", mode.name()), &[])?;
        process::let_others_run().context("SCHED_BATCH")?;
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(Client::connect()?);
        }
        for (value_bytes, divisor) in VALUES {
            let value = vec![b'v'; value_bytes];
            for number in 0..KEYS {
                let name = format!("key:{number:08}");
                clients[0].ask(&[b"SET", name.as_bytes(), &value])?;
            }
            for (mix, make) in MIXES {
                let count = commands / divisor;
                let mut turn = 0;
                run(&mut clients, make, &value, count / 2, &mut turn)?;
                seal()?;
                let (commits, pages, _) = committed()?;
                let before = server.cpu_ns()?;
                let sent = run(&mut clients, make, &value, count, &mut turn)?;
                let spent = server.cpu_ns()? - before;
                seal()?;
                let (all_commits, all_pages, resident) = committed()?;
                println!(
                    "{mix}, {value_bytes} bytes: {sent} sent, {} commits of {} pages, {resident} resident",
                    all_commits - commits,
                    all_pages - pages
                );
                tell(&Finding::Throughput(Throughput {
                    mode,
                    mix: mix.to_owned(),
                    value_bytes,
                    vcpus: 1,
                    nanoseconds: spent as f64 / f64::from(sent),
                    commands: sent,
                }))?;
            }
        }
    }
    Ok(())
}
