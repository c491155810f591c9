//! Load by mosquitto's own clients, of the plain build.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};

use anyhow::{Context, Result, ensure};

use super::start;
use crate::guest::tell;
use crate::plan::{Finding, Load, Mode};

/// Messages of each run.
const MESSAGES: u32 = 500;
/// Subscribers.
const SUBSCRIBERS: usize = 4;

const MESSAGE: &str = "message";
/// Is retained: it is the first that a subscriber gets, as soon as it has subscribed.
const READY: &str = "ready";

/// Runs `mosquitto_pub`.
fn publish(options: &[&str], more: &[&str]) -> Result<Output> {
    let mut command = Command::new("mosquitto_pub");
    let output = command.args(options).args(more).output();
    output.context("mosquitto_pub")
}

/// A `mosquitto_sub` that has subscribed.
struct Subscriber {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Subscriber {
    /// Starts one that ends after so many messages.
    fn start(options: &[&str], number: usize, messages: &str) -> Result<Self> {
        let mut process = Command::new("mosquitto_sub")
            .args(options)
            .args(["load/#", "-C", messages])
            .args(["-i", &format!("subscriber-{number}")])
            .stdout(Stdio::piped())
            .spawn()
            .context("mosquitto_sub")?;
        let output = process.stdout.take().context("its output")?;
        let mut lines = BufReader::new(output).lines();
        let first = lines.next().transpose()?;
        ensure!(
            first.as_deref() == Some(READY),
            "a subscriber got {first:?} first"
        );
        Ok(Self { process, lines })
    }

    /// The messages that have come, once it has ended.
    fn end(mut self) -> Result<(usize, ExitStatus)> {
        let mut came = 0;
        for line in self.lines {
            came += usize::from(line? == MESSAGE);
        }
        Ok((came, self.process.wait()?))
    }
}

/// Publishes messages to several subscribers, which end when all have come.
pub(super) fn run() -> Result<()> {
    for mode in Mode::ALL {
        for version in ["311", "5"] {
            for quality in ["0", "1", "2"] {
                let mut server = start(&format!("/{}/mosquitto", mode.name()), &[])?;
                let (count, all) = (MESSAGES.to_string(), (MESSAGES + 1).to_string());
                let options = ["-h", "127.0.0.1", "-V", version, "-q", quality, "-t"];
                publish(&options, &["load/ready", "-m", READY, "-r"])?;
                let mut subscribers = Vec::new();
                for number in 0..SUBSCRIBERS {
                    subscribers.push(Subscriber::start(&options, number, &all)?);
                }
                let out = publish(&options, &["load/one", "-m", MESSAGE, "--repeat", &count])?;
                let mut code = out.status.code();
                let mut output: Vec<String> = String::from_utf8_lossy(&out.stderr)
                    .lines()
                    .map(str::to_owned)
                    .collect();
                for subscriber in subscribers {
                    let (came, status) = subscriber.end()?;
                    output.push(format!("{came} messages, {status}"));
                    if came != MESSAGES as usize || !status.success() {
                        code = Some(1);
                    }
                }
                if let Some(status) = server.ended()? {
                    output.push(format!("the server ended with {status}"));
                    code = Some(1);
                }
                tell(&Finding::Load(Load {
                    mode,
                    command: format!(
                        "mosquitto_pub and {SUBSCRIBERS} mosquitto_sub {}",
                        options.join(" ")
                    ),
                    code,
                    output,
                }))?;
            }
        }
    }
    Ok(())
}
