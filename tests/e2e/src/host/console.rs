//! Watches the guest's console for complaints of its kernel: the driver must not upset the kernel it runs in, whatever
//! else a behaviour checks. A debug kernel looks harder (KASAN, lockdep, ...).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use vmsrs_bed::console::complaint;

/// Lines to quote from the first complaint on.
const QUOTED_LINES: usize = 120;

/// A guest's console log, read on from where the last check ended.
pub(super) struct Console {
    path: PathBuf,
    position: u64,
    /// Parts of complaints that the behaviour provokes on purpose.
    expected: Vec<&'static str>,
}

impl Console {
    /// The log at `path`, from its beginning.
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            position: 0,
            expected: Vec::new(),
        }
    }

    /// Accepts complaints that contain `text`, up to the next check.
    pub(super) fn expect(&mut self, text: &'static str) {
        self.expected.push(text);
    }

    /// Reads what was written since the last check.
    ///
    /// # Errors
    ///
    /// Fails on an unexpected complaint, and quotes the lines from there on.
    pub(super) fn check(&mut self) -> Result<()> {
        let expected = std::mem::take(&mut self.expected);
        let mut text = Vec::new();
        let mut file = File::open(&self.path).context("open the guest's console")?;
        file.seek(SeekFrom::Start(self.position))?;
        self.position += file.read_to_end(&mut text)? as u64;
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let found = lines.iter().position(|line| {
            complaint(line).is_some_and(|head| !expected.iter().any(|text| head.contains(text)))
        });
        let Some(first) = found else {
            return Ok(());
        };
        let end = lines.len().min(first + QUOTED_LINES);
        bail!(
            "the guest's kernel complained:\n{}",
            lines[first..end].join("\n")
        )
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn unexpected_complaints_fail_the_check_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut console = Console::new(path.clone());

        fs::write(&path, "[    1.0] vmsrs: loaded\n").unwrap();
        console.check().unwrap();

        fs::write(&path, "[    1.0] vmsrs: loaded\n[    2.0] BUG: one\nmore\n").unwrap();
        let error = console.check().unwrap_err().to_string();
        assert!(error.ends_with("[    2.0] BUG: one\nmore"), "{error}");
        console.check().unwrap();
    }

    #[test]
    fn an_expected_complaint_is_accepted_until_the_next_check() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut console = Console::new(path.clone());

        console.expect("one");
        fs::write(&path, "[    2.0] BUG: one\n").unwrap();
        console.check().unwrap();

        fs::write(&path, "[    2.0] BUG: one\n[    3.0] BUG: one\n").unwrap();
        assert!(console.check().is_err());
    }
}
