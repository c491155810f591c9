//! The agent in the guest: connects to the host and runs the steps that the host asks for.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::steps;

/// The host's request to run a step.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ask {
    /// The behaviour's name.
    pub behaviour: String,
    /// The step's name.
    pub step: String,
    /// Its argument.
    pub argument: String,
}

/// How a step ended.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Exit code, if it exited.
    pub code: Option<i32>,
    /// The signal that killed it, if one did.
    pub signal: Option<i32>,
    /// What it printed to standard output.
    pub output: String,
    /// What it printed to standard error.
    pub errors: String,
}

impl Answer {
    /// Whether the step succeeded.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
}

/// Connects to the host and runs steps until the host closes the connection.
///
/// # Errors
///
/// When the connection breaks or the host sends something other than an [`Ask`].
pub fn serve(host: SocketAddr) -> Result<()> {
    let stream = TcpStream::connect(host).with_context(|| format!("connect to {host}"))?;
    let mut writer = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        let ask: Ask = serde_json::from_str(&line?).context("an ask of the host")?;
        let mut answer = serde_json::to_string(&run(&ask)?)?;
        answer.push('\n');
        writer.write_all(answer.as_bytes())?;
    }
    Ok(())
}

fn run(ask: &Ask) -> Result<Answer> {
    let output = steps::command(&ask.behaviour, &ask.step, &ask.argument)?
        .stdin(Stdio::null())
        .output()
        .context("start the step")?;
    Ok(Answer {
        code: output.status.code(),
        signal: output.status.signal(),
        output: String::from_utf8_lossy(&output.stdout).into_owned(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
