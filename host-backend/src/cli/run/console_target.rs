//! Where the guest's serial console goes.

use std::fs::File;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::RunError;
use crate::cli::Failure;
use crate::vmm::console::Console;

/// Where the journal takes streams of lines.
const JOURNAL: &str = "/run/systemd/journal/stdout";

/// Where the serial console goes.
#[derive(Debug, Clone)]
pub(super) enum ConsoleTarget {
    /// The terminal, or whatever standard input and output are.
    Stdio,
    /// The journal of this machine, an entry for each line.
    Journal,
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
            "journal" => Self::Journal,
            "none" => Self::None,
            file => Self::File(file.into()),
        })
    }
}

impl ConsoleTarget {
    /// Opens it, for the VM with that name.
    pub(super) fn open(&self, vm: &str) -> Result<Console, Failure> {
        Ok(match self {
            ConsoleTarget::Stdio => Console::stdio()?,
            ConsoleTarget::Journal => {
                Console::output_to(journal(Path::new(JOURNAL), vm).map_err(RunError::Journal)?)?
            }
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

/// A stream whose lines the journal that listens there keeps as entries of `vmsrs-NAME` (its protocol is that of
/// `sd_journal_stream_fd(3)`).
fn journal(path: &Path, vm: &str) -> io::Result<File> {
    let mut stream = UnixStream::connect(path)?;
    stream.shutdown(Shutdown::Read)?;
    // Identifier, unit, priority; whether lines begin with a priority; to where the journal passes them on.
    write!(stream, "vmsrs-{vm}\n\n6\n0\n0\n0\n0\n")?;
    // A file is written by write(2), which the thread may call.
    Ok(OwnedFd::from(stream).into())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_journal_gets_the_console_as_lines_of_the_vm() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("stdout");
        journal(&path, "web").unwrap_err();
        let listener = UnixListener::bind(&path).unwrap();
        let mut file = journal(&path, "web").unwrap();
        file.write_all(b"Linux version\n").unwrap();
        drop(file);
        let mut text = String::new();
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "vmsrs-web\n\n6\n0\n0\n0\n0\nLinux version\n");
    }
}
