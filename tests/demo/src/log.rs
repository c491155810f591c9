//! What a job on the KVM host says: its messages apart from everything else, which goes to a file.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use vmsrs_bed::Event;

/// The file `console.log` of a run.
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// Creates the file in `folder`.
    ///
    /// # Errors
    ///
    /// When it cannot be created.
    pub fn create(folder: &Path) -> Result<Self> {
        let path = folder.join("console.log");
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self { file, path })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The message in an event of the job; an event without one is written to the file.
    pub fn message<M: DeserializeOwned>(&mut self, event: Event<'_>) -> Option<M> {
        // The log is for people who look for the cause of trouble; the run does without it.
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
