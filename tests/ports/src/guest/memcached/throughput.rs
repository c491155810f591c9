//! What commands cost the server: CPU time by a clock that counts instructions.
//!
//! A client with several connections sends a command on each and then reads all answers, so the server finds several
//! connections ready, as it does under load.

use anyhow::{Context, Result, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use vmsrs_bed::process;

use super::client::Client;
use super::{start, tell};
use crate::guest::server::seal;
use crate::plan::{Finding, Mode, Throughput};

/// Connections of the client.
const CONNECTIONS: usize = 8;
/// Sizes of values, how many keys have one, and by what the number of commands is divided.
const VALUES: [(usize, u64, u32); 3] = [(100, 4096, 1), (4096, 2048, 2), (64 * 1024, 256, 8)];
/// Percentages of commands that set a value.
const SETS_PERCENT: [u32; 3] = [0, 5, 50];
/// Options of both servers.
const OPTIONS: [&str; 2] = ["-m", "96"];

/// Measures both builds, with as many threads as there are virtual CPUs.
pub(super) fn measure(commands: u32, vcpus: u32) -> Result<()> {
    let threads = vcpus.to_string();
    let options = [&OPTIONS[..], &["-t", &threads]].concat();
    for (value_bytes, keys, divisor) in VALUES {
        for mode in Mode::ALL {
            let program = format!("/{}/memcached", mode.name());
            let server = start(&program, &options, &[])?;
            process::let_others_run().context("SCHED_BATCH")?;
            let mut clients = Vec::new();
            for _ in 0..CONNECTIONS {
                clients.push(Client::connect()?);
            }
            let value = vec![b'v'; value_bytes];
            for key in 0..keys {
                clients[0].send_set(&name(key), &value)?;
                clients[0].expect("STORED")?;
            }
            seal()?;
            // Twice: an item counts as active after two hits.
            for _ in 0..2 {
                for key in 0..keys {
                    clients[0].send_get(&name(key))?;
                    ensure!(clients[0].expect_value()?.is_some(), "a key was evicted");
                }
            }
            for sets_percent in SETS_PERCENT {
                let mut random = SmallRng::seed_from_u64(1);
                let count = commands / divisor;
                run(
                    &mut clients,
                    keys,
                    value_bytes,
                    sets_percent,
                    count / 2,
                    &mut random,
                )?;
                let before = server.cpu_ns()?;
                let sent = run(
                    &mut clients,
                    keys,
                    value_bytes,
                    sets_percent,
                    count,
                    &mut random,
                )?;
                let spent = server.cpu_ns()? - before;
                tell(&Finding::Throughput(Throughput {
                    mode,
                    mix: format!("{}/{sets_percent}", 100 - sets_percent),
                    value_bytes,
                    vcpus,
                    nanoseconds: spent as f64 / f64::from(sent),
                    commands: sent,
                }))?;
            }
        }
    }
    Ok(())
}

fn name(key: u64) -> String {
    format!("key-{key:08}")
}

/// Sends at least so many commands and checks their answers; returns how many it sent.
fn run(
    clients: &mut [Client],
    keys: u64,
    value_bytes: usize,
    sets_percent: u32,
    commands: u32,
    random: &mut SmallRng,
) -> Result<u32> {
    let mut sent = 0;
    while sent < commands {
        let mut sets = [false; CONNECTIONS];
        for (client, set) in clients.iter_mut().zip(&mut sets) {
            let key = name(random.random_range(0..keys));
            *set = random.random_range(0..100) < sets_percent;
            match *set {
                true => {
                    client.send_set(&key, &vec![random.random_range(b'a'..=b'z'); value_bytes])?
                }
                false => client.send_get(&key)?,
            }
        }
        for (client, set) in clients.iter_mut().zip(sets) {
            if set {
                client.expect("STORED")?;
                continue;
            }
            let value = client.expect_value()?.unwrap_or_default();
            ensure!(
                value.len() == value_bytes,
                "a value of {} bytes",
                value.len()
            );
            ensure!(value.iter().all(|byte| *byte == value[0]), "a torn value");
        }
        sent += CONNECTIONS as u32;
    }
    Ok(sent)
}
