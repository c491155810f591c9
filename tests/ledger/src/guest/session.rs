//! The side of the KVM host: boots a guest with `vmsrs run`, works with its server, and stops it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use vmsrs_bed::guest::{Config, Guest};
use vmsrs_bed::results::tell;

use super::message::{Finding, Message};
use super::{TAP, ledger};
use crate::client::Client;

/// Between two messages with counts.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long one attempt to reach the server may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// The files and the time to boot a guest with.
#[derive(Debug, Clone, clap::Args)]
pub struct BootArgs {
    /// The kernel.
    #[arg(long)]
    pub kernel: PathBuf,
    /// The initramfs.
    #[arg(long)]
    pub initramfs: PathBuf,
    /// Virtual CPUs.
    #[arg(long, default_value_t = 2)]
    pub vcpus: u32,
    /// Seconds until the server in the guest must answer.
    #[arg(long, default_value_t = 300)]
    pub boot_timeout: u64,
}

impl BootArgs {
    /// The guest, with a network card; the rest as [`Config::new`] has it.
    #[must_use]
    pub fn config(&self) -> Config {
        Config::new(&self.kernel, &self.initramfs)
            .vcpus(self.vcpus)
            .tap(TAP)
    }
}

/// Sends progress messages, but not too many.
#[derive(Debug)]
pub struct ProgressSender {
    last: Instant,
}

impl ProgressSender {
    /// Sends a message unless there was one just before.
    pub fn progress<F: Finding>(&mut self, progress: F::Progress) {
        if self.last.elapsed() >= INTERVAL {
            self.last = Instant::now();
            // Only the result at the end is essential.
            let _ = tell(&Message::<_, F>::Progress(progress));
        }
    }
}

/// Boots the guest, does `work` with its server and stops the guest. Returns whether there is a result, which is sent as
/// a message.
///
/// # Errors
///
/// When no message can be sent.
pub fn run<F: Finding>(
    name: &str,
    args: &BootArgs,
    config: &Config,
    work: impl FnOnce(&Guest, &mut ProgressSender) -> Result<F>,
) -> Result<bool> {
    let say = |message: &Message<F::Progress, &F>| tell(message);
    say(&Message::Booting(name.to_owned()))?;
    let mut guest = match config.boot() {
        Ok(guest) => guest,
        Err(error) => {
            say(&Message::Trouble(error.to_string()))?;
            return Ok(false);
        }
    };
    let limit = Duration::from_secs(args.boot_timeout);
    let result = guest
        .wait("an answer of the server in the guest", limit, |_| {
            let answer =
                Client::connect(ledger(), ANSWER_LIMIT).and_then(|mut client| client.stats());
            Ok::<_, anyhow::Error>(answer.ok())
        })
        .and_then(|_| {
            say(&Message::Ready)?;
            let last = Instant::now();
            work(&guest, &mut ProgressSender { last })
        })
        .and_then(|found| {
            guest.stop()?;
            Ok(found)
        });
    if !result.as_ref().is_ok_and(F::is_good) {
        eprintln!("{}", guest.logs());
    }
    match &result {
        Ok(found) => say(&Message::Done(found))?,
        Err(error) => say(&Message::Trouble(format!("{error:#}")))?,
    }
    Ok(result.is_ok())
}

/// Prints the host's records of these incidents, to find their cause.
pub fn print_incidents(guest: &Guest, incidents: &[u64]) {
    for incident in incidents {
        if let Ok(text) = guest.control().show(&["incidents", &incident.to_string()]) {
            eprintln!("{text}");
        }
    }
}
