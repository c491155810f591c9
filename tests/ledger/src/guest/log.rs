//! The output of a job on the KVM host: messages are parsed, everything else goes to a file.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use vmsrs_bed::Event;

/// The file `console.log` of a run.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// Creates the file in `folder`.
    ///
    /// # Errors
    ///
    /// When it cannot be created.
    pub(super) fn create(folder: &Path) -> Result<Self> {
        let path = folder.join("console.log");
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self { file, path })
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The message in an event of the job; other events are written to the file.
    pub(super) fn message<M: DeserializeOwned>(&mut self, event: Event<'_>) -> Option<M> {
        // The run does not depend on the log.
        match event {
            Event::Console(line) => drop(writeln!(self.file, "{line}")),
            Event::Result(line) => match serde_json::from_str(line) {
                Ok(message) => return Some(message),
                Err(_) => drop(writeln!(self.file, "result: {line}")),
            },
        }
        None
    }
}
