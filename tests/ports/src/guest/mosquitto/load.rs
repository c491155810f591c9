//! Load by mosquitto's own clients, of the plain build.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::start;
use crate::guest::tell;
use crate::plan::{Finding, Load, Mode};

/// Messages of each run.
const MESSAGES: u32 = 500;
/// Subscribers.
const SUBSCRIBERS: usize = 4;

/// Publishes messages to several subscribers, which end when all have come.
pub(super) fn run() -> Result<()> {
    for mode in Mode::ALL {
        for version in ["311", "5"] {
            for quality in ["0", "1", "2"] {
                let mut server = start(&format!("/{}/mosquitto", mode.name()), &[])?;
                let count = MESSAGES.to_string();
                let options = ["-h", "127.0.0.1", "-V", version, "-q", quality, "-t"];
                let mut subscribers = Vec::new();
                for number in 0..SUBSCRIBERS {
                    let subscriber = Command::new("mosquitto_sub")
                        .args(options)
                        .args([
                            "load/#",
                            "-C",
                            &count,
                            "-i",
                            &format!("subscriber-{number}"),
                        ])
                        .stdout(Stdio::piped())
                        .spawn()
                        .context("mosquitto_sub")?;
                    subscribers.push(subscriber);
                }
                // Their subscriptions are not told; without them a message is missing, which is found.
                std::thread::sleep(std::time::Duration::from_secs(2));
                let out = Command::new("mosquitto_pub")
                    .args(options)
                    .args(["load/one", "-m", "message", "--repeat", &count])
                    .output()
                    .context("mosquitto_pub")?;
                let mut code = out.status.code();
                let mut output: Vec<String> = String::from_utf8_lossy(&out.stderr)
                    .lines()
                    .map(str::to_owned)
                    .collect();
                for subscriber in subscribers {
                    let out = subscriber.wait_with_output()?;
                    let text = String::from_utf8_lossy(&out.stdout);
                    let came = text.lines().filter(|line| *line == "message").count();
                    output.push(format!("{came} messages, {}", out.status));
                    if came != MESSAGES as usize || !out.status.success() {
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
