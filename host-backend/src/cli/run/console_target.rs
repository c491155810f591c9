//! Where the guest's serial console goes.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use super::RunError;
use crate::cli::Failure;
use crate::vmm::console::Console;

/// Where the serial console goes.
#[derive(Debug, Clone)]
pub(super) enum ConsoleTarget {
    /// The terminal, or whatever standard input and output are.
    Stdio,
    /// Nowhere.
    None,
    /// A file, which is truncated.
    File(PathBuf),
}

impl FromStr for ConsoleTarget {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "stdio" => Self::Stdio,
            "none" => Self::None,
            file => Self::File(file.into()),
        })
    }
}

impl ConsoleTarget {
    /// Opens it.
    pub(super) fn open(&self) -> Result<Console, Failure> {
        Ok(match self {
            ConsoleTarget::Stdio => Console::stdio()?,
            ConsoleTarget::None => Console::output_to(io::sink())?,
            ConsoleTarget::File(path) => {
                let file = File::create(path).map_err(|source| RunError::Console {
                    path: path.clone(),
                    source,
                })?;
                Console::output_to(file)?
            }
        })
    }
}
