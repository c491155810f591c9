//! The folder of a program's results.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

/// Creates the folder, if it does not exist.
///
/// # Errors
///
/// When it cannot be created.
pub fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
}

/// Writes a text to a file of the folder: its path.
///
/// # Errors
///
/// When it cannot be written.
pub fn write(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Writes `report.json` into the folder: its path.
///
/// # Errors
///
/// When it cannot be written.
pub fn write_report(folder: &Path, report: &impl Serialize) -> Result<PathBuf> {
    let text = serde_json::to_string_pretty(report)? + "\n";
    write(folder, "report.json", &text)
}
