//! Load by tools that are not ours: those of libmemcached.

use std::process::Command;

use anyhow::{Context, Result};

use super::{start, tell};
use crate::plan::{Finding, Load, Mode};

/// The tools that are there, and how they are called. `memccapable` checks every command of both protocols.
const COMMANDS: [&[&str]; 4] = [
    &["memccapable", "-h", "127.0.0.1", "-p", "11211"],
    &[
        "memcslap",
        "--servers=127.0.0.1:11211",
        "--concurrency=8",
        "--execute-number=500",
        "--test=set",
    ],
    &[
        "memcslap",
        "--servers=127.0.0.1:11211",
        "--concurrency=8",
        "--execute-number=500",
        "--test=get",
    ],
    &[
        "memcslap",
        "--servers=127.0.0.1:11211",
        "--concurrency=8",
        "--execute-number=500",
        "--test=set",
        "--binary",
    ],
];

/// Runs the tools against both builds.
pub(super) fn run() -> Result<()> {
    for mode in Mode::ALL {
        for command in COMMANDS {
            let program = format!("/{}/memcached", mode.name());
            let mut server = start(&program, &["-t", "2", "-m", "96"], &[])?;
            let out = Command::new(command[0])
                .args(&command[1..])
                .output()
                .with_context(|| format!("run {}", command[0]))?;
            let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&out.stderr));
            let mut output: Vec<String> = text.lines().rev().take(60).map(str::to_owned).collect();
            output.reverse();
            if let Some(status) = server.ended()? {
                output.push(format!("the server ended with {status}"));
            }
            tell(&Finding::Load(Load {
                mode,
                command: command.join(" "),
                code: out.status.code(),
                output,
            }))?;
        }
    }
    Ok(())
}
