//! Load by redis' own tools, of the plain build.

use std::process::Command;

use anyhow::{Context, Result};

use super::start;
use crate::guest::tell;
use crate::plan::{Finding, Load, Mode};

/// The tools, and how they are called. Without `-r` all connections work on the same few keys.
const COMMANDS: [&[&str]; 4] = [
    &[
        "redis-benchmark",
        "-q",
        "-c",
        "20",
        "-n",
        "300",
        "-r",
        "1000",
    ],
    &[
        "redis-benchmark",
        "-q",
        "-c",
        "20",
        "-n",
        "640",
        "-P",
        "16",
        "-t",
        "set,get,incr,lpush,lpop,hset",
    ],
    &[
        "redis-benchmark",
        "-q",
        "-c",
        "20",
        "-n",
        "200",
        "-d",
        "4096",
        "-r",
        "100",
        "-t",
        "set,get,lpush",
    ],
    &[
        "redis-benchmark",
        "-q",
        "-c",
        "20",
        "-n",
        "200",
        "eval",
        "return redis.call('incr', KEYS[1])",
        "1",
        "k",
    ],
];

/// Runs the tools against both builds.
pub(super) fn run() -> Result<()> {
    for mode in Mode::ALL {
        for command in COMMANDS {
            let mut server = start(&format!("/{}/redis-server", mode.name()), &[])?;
            let out = Command::new(command[0])
                .args(&command[1..])
                .output()
                .with_context(|| format!("run {}", command[0]))?;
            let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&out.stderr));
            // Each line is overwritten many times before its end.
            let lines = text.lines().filter_map(|line| line.rsplit('\r').next());
            let mut output: Vec<String> = lines.map(str::to_owned).collect();
            let mut code = out.status.code();
            if let Some(status) = server.ended()? {
                output.push(format!("the server ended with {status}"));
                code = Some(1);
            }
            if output.iter().any(|line| line.contains("Error")) {
                code = Some(1);
            }
            tell(&Finding::Load(Load {
                mode,
                command: command.join(" "),
                code,
                output,
            }))?;
        }
    }
    Ok(())
}
