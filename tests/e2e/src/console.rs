//! Watches the guest's console for complaints of its kernel: whatever a behaviour finds, the driver must not have upset
//! the kernel it runs in. A debug kernel looks harder (KASAN, lockdep, ...).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use vmsrs_bed::console::complaint;

/// Lines of the console that a message has from the first complaint on.
const QUOTED_LINES: usize = 120;

/// A machine's console log, read on from where the last check ended.
pub(crate) struct Console {
    path: PathBuf,
    read: u64,
    /// Parts of complaints that the behaviour means to bring about.
    pub(crate) expected: Vec<&'static str>,
}

impl Console {
    /// The log at `path`, from its beginning.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            read: 0,
            expected: Vec::new(),
        }
    }

    /// Reads what was written since the last check, and forgets what was expected.
    ///
    /// # Errors
    ///
    /// When there is a complaint that was not expected, with the lines that follow it.
    pub(crate) fn check(&mut self) -> Result<()> {
        let expected = std::mem::take(&mut self.expected);
        let mut text = Vec::new();
        let mut file = File::open(&self.path).context("open the guest's console")?;
        file.seek(SeekFrom::Start(self.read))?;
        self.read += file.read_to_end(&mut text)? as u64;
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let found = lines.iter().position(|line| {
            complaint(line).is_some_and(|head| !expected.iter().any(|text| head.contains(text)))
        });
        let Some(at) = found else {
            return Ok(());
        };
        let end = lines.len().min(at + QUOTED_LINES);
        bail!(
            "the guest's kernel complained:\n{}",
            lines[at..end].join("\n")
        )
    }
}
