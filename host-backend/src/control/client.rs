//! The client's side of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::process::VmProcess;
use super::{Refusal, Request, Response, socket};

/// Longest time to wait for a VM.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Longest response in bytes: many times what all incidents with all their facts take.
const RESPONSE_MAX: u64 = 64 << 20;

/// Why a VM did not answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No server, or no permission.
    #[error(
        "no VM can be reached at {}: start one with `vmsrs run`, or give its --name or --socket",
        .path.display()
    )]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The connection broke, or the VM was too slow.
    #[error("the VM did not answer: it is ending or stuck; see its log")]
    Exchange(#[from] io::Error),
    /// The response is malformed.
    #[error("the VM sent an unexpected answer: it may be of another version")]
    Malformed(#[from] serde_json::Error),
    /// The VM did not carry the request out.
    #[error("{}", .0.message)]
    Refused(Refusal),
}

/// A connection to a VM.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the VM whose control socket is at `path`.
    ///
    /// # Errors
    ///
    /// Fails when no VM listens there, the socket belongs to another user, or the VM takes no connection
    /// for 10 seconds.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Self::connect_within(path, TIMEOUT)
    }

    fn connect_within(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let stream = socket::connect(path, timeout).map_err(|source| match source.kind() {
            // It listens, and takes no connection.
            io::ErrorKind::WouldBlock => ClientError::Exchange(source),
            _ => ClientError::Connect {
                path: path.to_owned(),
                source,
            },
        })?;
        stream.set_read_timeout(Some(timeout))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// The process of the VM.
    ///
    /// # Errors
    ///
    /// Fails when it is not visible to this one, as from another container.
    pub fn process(&self) -> io::Result<VmProcess> {
        VmProcess::of_peer(self.stream.get_ref())
    }

    /// Sends a request and waits for its response, at most 10 seconds at a time.
    ///
    /// # Errors
    ///
    /// Fails when the VM does not answer, or refuses: [`Response::Error`] comes as
    /// [`ClientError::Refused`].
    pub fn ask(&mut self, request: Request) -> Result<Response, ClientError> {
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        line.clear();
        (&mut self.stream)
            .take(RESPONSE_MAX)
            .read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        match serde_json::from_slice(&line)? {
            Response::Error(refusal) => Err(ClientError::Refused(refusal)),
            response => Ok(response),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_vm_that_takes_no_connection_is_told_as_stuck() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("s");
        let _stuck = UnixListener::bind(&path).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match Client::connect_within(&path, Duration::from_millis(1)) {
                Ok(client) => waiting.push(client),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ClientError::Exchange(_)), "{error:?}");
    }
}
