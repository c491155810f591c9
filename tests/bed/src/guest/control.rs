//! A running machine's control socket, by way of the `vmsrs` command.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::command;
use crate::error::{Error, Result};

/// The control socket of a running machine. It is cheap to clone and may be used from any thread.
#[derive(Debug, Clone)]
pub struct Control {
    socket: PathBuf,
}

impl Control {
    /// The control socket at `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What `vmsrs ARGUMENTS --json` prints.
    ///
    /// # Errors
    ///
    /// When the command fails, or does not print JSON.
    pub fn query(&self, arguments: &[&str]) -> Result<Value> {
        self.parse(arguments)
    }

    /// What `vmsrs ARGUMENTS` prints.
    ///
    /// # Errors
    ///
    /// When the command fails, with what it printed.
    pub fn show(&self, arguments: &[&str]) -> Result<String> {
        command::stdout(&mut self.command(arguments))
    }

    /// Runs `vmsrs ARGUMENTS` to its end, however it ends.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut vmsrs = self.command(arguments);
        vmsrs
            .stdin(Stdio::null())
            .output()
            .map_err(|source| command::spawn_error(&vmsrs, source))
    }

    /// What `vmsrs status --json` prints.
    ///
    /// # Errors
    ///
    /// As [`Control::query`].
    pub fn status(&self) -> Result<Value> {
        self.query(&["status"])
    }

    /// The list that `vmsrs incidents --json` prints.
    ///
    /// # Errors
    ///
    /// As [`Control::query`].
    pub fn incidents(&self) -> Result<Vec<Value>> {
        self.parse(&["incidents"])
    }

    fn parse<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let text = self.show(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&text).map_err(|source| Error::Json {
            command: arguments.join(" "),
            source,
        })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut vmsrs = Command::new("vmsrs");
        vmsrs.args(arguments).arg("--socket").arg(&self.socket);
        vmsrs
    }
}
