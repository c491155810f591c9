//! The job's side of the result stream.

use std::env;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use crate::error::{IoContext, Result};

/// The environment variable with the path of the result stream.
pub const VARIABLE: &str = "VMSRS_RESULTS";

/// Writes `message` as a line of JSON to the results of the job, or to standard output outside of a job.
///
/// # Errors
///
/// When it cannot be written.
pub fn tell(message: &impl Serialize) -> Result<()> {
    let line = serde_json::to_string(message).map_err(io::Error::from);
    let (path, written) = match env::var_os(VARIABLE).map(PathBuf::from) {
        Some(path) => {
            let append = |line| {
                let mut stream = OpenOptions::new().append(true).open(&path)?;
                stream.write_all(format!("{line}\n").as_bytes())
            };
            let written = line.and_then(append);
            (path, written)
        }
        None => {
            let written = line.and_then(|line| writeln!(io::stdout(), "{line}"));
            ("standard output".into(), written)
        }
    };
    written.context("write to", &path)
}
