//! A guest on the KVM host: `vmsrs run` from boot to end.
//!
//! This is for programs inside a [`Job`](crate::Job), on the nested host and on this machine's own KVM alike.
//!
//! ```no_run
//! # fn main() -> Result<(), vmsrs_bed::Error> {
//! use std::time::Duration;
//! use vmsrs_bed::guest::Config;
//!
//! let mut guest = Config::new("vmlinux", "guest.img").tap("tap0,192.168.77.1/24").boot()?;
//! guest.wait("the first commit", Duration::from_secs(300), |guest| {
//!     let batches = guest.control().status()?["recovery"]["batches"].as_u64();
//!     Ok::<_, vmsrs_bed::Error>(batches.filter(|&batches| batches > 0))
//! })?;
//! guest.stop()?;
//! # Ok(())
//! # }
//! ```

mod config;
mod control;
mod plans;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::command;
use crate::error::{Error, IoContext, Result};
use crate::patience;

pub use config::Config;
pub use control::Control;
pub use plans::Plans;

/// The log of `vmsrs run` in the guest's folder.
const LOG: &str = "vmsrs.log";
/// The log of the guest's console there.
const CONSOLE: &str = "console.log";
/// The control socket there.
const SOCKET: &str = "vm.sock";
/// How many of the last lines of each log [`Guest::logs`] has.
const LOG_LINES: usize = 60;
/// How long `vmsrs run` may take to end after SIGTERM; it takes less than a second.
const STOP_LIMIT: Duration = Duration::from_secs(300);
/// How long [`Guest::wait`] sleeps before it asks again.
const PAUSE: Duration = Duration::from_millis(50);

/// A running `vmsrs run` with its socket and logs in a folder of its own; killed, and the folder removed, when dropped.
#[derive(Debug)]
pub struct Guest {
    process: Child,
    control: Control,
    folder: TempDir,
}

impl Guest {
    fn boot(config: &Config) -> Result<Self> {
        let parent = std::env::temp_dir();
        let folder = tempfile::Builder::new()
            .prefix("vmsrs-")
            .tempdir_in(&parent)
            .context("create a folder in", &parent)?;
        let path = folder.path().join(LOG);
        let log = File::create(&path).context("create", &path)?;
        let mut vmsrs = Command::new("vmsrs");
        vmsrs.args(config.arguments(folder.path()));
        if config.console_is_piped() {
            vmsrs.stdin(Stdio::piped()).stdout(Stdio::piped());
        } else {
            let log = log.try_clone().context("open", &path)?;
            vmsrs.stdin(Stdio::null()).stdout(log);
        }
        if let Some(socket) = config.manager_socket() {
            vmsrs.env("NOTIFY_SOCKET", socket);
        }
        let process = vmsrs
            .stderr(log)
            .spawn()
            .map_err(|source| command::spawn_error(&vmsrs, source))?;
        Ok(Self {
            process,
            control: Control::new(folder.path().join(SOCKET)),
            folder,
        })
    }

    /// Asks `probe` again and again until it gives a value. `what` names that in errors, as in "the server's answer".
    ///
    /// # Errors
    ///
    /// What `probe` returns; [`Error::GuestEnded`] when `vmsrs run` ends first, and [`Error::GuestLate`] after `limit`,
    /// which [`patience`] scales.
    pub fn wait<T, E: From<Error>>(
        &mut self,
        what: &str,
        limit: Duration,
        mut probe: impl FnMut(&mut Self) -> Result<Option<T>, E>,
    ) -> Result<T, E> {
        let limit = patience::scaled(limit);
        let start = Instant::now();
        loop {
            if let Some(value) = probe(self)? {
                return Ok(value);
            }
            if let Some(status) = self.exit_status()? {
                let before = format!("before {what} came");
                return Err(Error::GuestEnded { status, before }.into());
            }
            if start.elapsed() >= limit {
                let (what, after) = (what.to_owned(), limit);
                return Err(Error::GuestLate { what, after }.into());
            }
            thread::sleep(PAUSE);
        }
    }

    /// How `vmsrs run` ended; `None` while it runs.
    ///
    /// # Errors
    ///
    /// When the system call fails.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        self.process
            .try_wait()
            .context("wait for", Path::new("vmsrs"))
    }

    /// The process of `vmsrs run`.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The running machine's control socket, as the `vmsrs` command uses it.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The log of the guest's console; it does not exist with [`Config::console_on_pipes`].
    pub fn console_log(&self) -> PathBuf {
        self.folder.path().join(CONSOLE)
    }

    /// The guest's console, for [`Config::console_on_pipes`]; `None` when it has been taken or goes to a log.
    pub fn take_console(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        self.process.stdin.take().zip(self.process.stdout.take())
    }

    /// What `vmsrs run` has logged so far.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    pub fn log(&self) -> Result<String> {
        let path = self.folder.path().join(LOG);
        let bytes = fs::read(&path).context("read", &path)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The ends of both logs, for error messages.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for name in [LOG, CONSOLE] {
            let bytes = fs::read(self.folder.path().join(name)).unwrap_or_default();
            let log = String::from_utf8_lossy(&bytes);
            text.push_str(&format!("--- {name}\n{}\n", command::tail(&log, LOG_LINES)));
        }
        text
    }

    /// Stops the machine as an operator does, by SIGTERM, and waits for its end.
    ///
    /// # Errors
    ///
    /// [`Error::GuestEnded`] when it had ended before or its exit status is not 0, [`Error::GuestLate`] when it does not end.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(status) = self.exit_status()? {
            let before = "before it was stopped".to_owned();
            return Err(Error::GuestEnded { status, before });
        }
        // The shell has a kill of its own; a small Debian has no other.
        let pid = self.pid().to_string();
        command::output(Command::new("sh").args(["-c", "kill -TERM \"$0\"", &pid]))?;
        let status = self.wait_for_end("the end after SIGTERM", STOP_LIMIT)?;
        if status.success() {
            return Ok(());
        }
        let before = "after SIGTERM".to_owned();
        Err(Error::GuestEnded { status, before })
    }

    /// Waits until `vmsrs run` ends by itself.
    ///
    /// # Errors
    ///
    /// [`Error::GuestLate`] after `limit`, which [`patience`] scales.
    pub fn wait_for_end(&mut self, what: &str, limit: Duration) -> Result<ExitStatus> {
        let limit = patience::scaled(limit);
        let start = Instant::now();
        loop {
            if let Some(status) = self.exit_status()? {
                return Ok(status);
            }
            if start.elapsed() >= limit {
                let (what, after) = (what.to_owned(), limit);
                return Err(Error::GuestLate { what, after });
            }
            thread::sleep(PAUSE);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(script: &str) -> Guest {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(LOG), "one\ntwo\n").unwrap();
        let mut sh = Command::new("sh");
        Guest {
            process: sh.args(["-c", script]).spawn().unwrap(),
            control: Control::new(folder.path().join(SOCKET)),
            folder,
        }
    }

    #[test]
    fn waiting_ends_with_the_value_or_with_the_process() {
        let mut running = guest("exec sleep 600");
        let mut left = 3;
        let value = running.wait("it", Duration::MAX, |_| {
            left -= 1;
            Ok::<_, Error>((left == 0).then_some("value"))
        });
        assert_eq!(value.unwrap(), "value");

        let ended = guest("exit 5").wait("it", Duration::MAX, |_| Ok::<Option<()>, Error>(None));
        let text = ended.unwrap_err().to_string();
        assert_eq!(text, "vmsrs run ended (exit status: 5) before it came");
    }

    #[test]
    fn stopping_tells_how_it_ended() {
        let mut killed = guest("exec sleep 600");
        let error = killed.stop().unwrap_err().to_string();
        assert!(error.contains("signal: 15"), "{error}");
        let error = killed.stop().unwrap_err().to_string();
        assert!(error.ends_with("before it was stopped"), "{error}");
    }

    #[test]
    fn a_dropped_guest_is_killed_and_its_folder_removed() {
        let running = guest("exec sleep 600");
        let process = PathBuf::from(format!("/proc/{}", running.pid()));
        let folder = running.folder.path().to_owned();
        assert!(process.exists() && folder.exists());
        drop(running);
        assert!(!process.exists() && !folder.exists());
    }

    #[test]
    fn logs_are_quoted_by_name() {
        let logs = guest("true").logs();
        assert_eq!(logs, "--- vmsrs.log\none\ntwo\n--- console.log\n\n");
    }
}
