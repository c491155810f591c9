//! Servers as users run them.

use anyhow::Result;

use super::load::{Load, Server};
use super::mark;
use super::meter::Meter;
use super::random::Random;
use super::tell;
use crate::profile::facts;
use crate::sample::{Sample, ServerLoad, What};

/// Servers in the guest's image: name, mode, command.
const SERVERS: [(&str, &str, &[&str]); 3] = [
    (
        "memcached",
        "plain",
        &["memcached", "-u", "root", "-t", "1", "-m", "48"],
    ),
    (
        "cache",
        "plain",
        &["cache-plain", "-t", "1", "-m", "48", "-s", "16"],
    ),
    (
        "cache",
        "protected",
        &["cache", "-t", "1", "-m", "48", "-s", "16"],
    ),
];
/// Sizes of values, how many keys have one, and how many commands are measured for each round of the other parts: so
/// many that what happens once per shard or batch does not decide.
const VALUES: [(usize, u64, u32); 3] = [(100, 4096, 100), (1024, 4096, 100), (16 * 1024, 512, 40)];
/// Percentages of commands that set a value.
const SERVER_WRITES_PERCENT: [u32; 3] = [0, 5, 50];

/// Servers as users run them: over loopback TCP.
pub(super) fn measure(meter: &Meter, rounds: u32) -> Result<()> {
    for (server, mode, command) in SERVERS {
        for (value_bytes, keys, each) in VALUES {
            let commands = rounds * each;
            let mut running = Server::start(command)?;
            if meter.profiles() {
                tell(&facts::of_program(running.process())?)?;
            }
            let load = |writes_percent| Load {
                keys,
                value_bytes,
                writes_percent,
            };
            running.fill(load(0))?;
            running.read_all(load(0))?;
            for writes_percent in SERVER_WRITES_PERCENT {
                let load = load(writes_percent);
                let mut random = Random::new();
                running.run(load, commands / 2, &mut random)?;
                meter.phase(commands, |commands| {
                    let before = running.cpu_ns()?;
                    mark::start();
                    let sent = running.run(load, commands, &mut random)?;
                    mark::stop();
                    let spent = running.cpu_ns()? - before;
                    Ok(Sample {
                        writes_percent: Some(writes_percent),
                        nanoseconds: spent as f64 / f64::from(sent),
                        server: Some(ServerLoad {
                            server: server.to_owned(),
                            mode: mode.to_owned(),
                            value_bytes,
                        }),
                        ..Sample::new(What::Server, mode == "protected", sent)
                    })
                })?;
            }
        }
    }
    Ok(())
}
