//! The connection to the agent in the guest.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use vmsrs_bed::{guest, patience};

use crate::agent::{Answer, Ask};
use crate::limits::{BOOT_LIMIT, STEP_LIMIT};

/// Port on which the host waits for the agent.
const PORT: u16 = 7000;
/// How long a read waits before the machine is looked at.
const TICK: Duration = Duration::from_secs(1);

/// Listens for the agent, which connects in every boot of the guest.
pub(super) struct Listener(TcpListener);

impl Listener {
    pub(super) fn new() -> Result<Self> {
        let listener = TcpListener::bind(("0.0.0.0", PORT)).context("listen for the agent")?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// Waits for the agent of a guest that boots.
    ///
    /// # Errors
    ///
    /// When the machine ends, or the agent does not connect.
    pub(super) fn wait(&self, machine: &mut guest::Guest) -> Result<Connection> {
        machine.wait("the guest's agent", BOOT_LIMIT, |_| self.accept())
    }

    /// Waits for the agent of the guest's next boot.
    ///
    /// # Errors
    ///
    /// As [`Listener::wait`], and when the agent of this boot answers.
    pub(super) fn wait_for_next(
        &self,
        machine: &mut guest::Guest,
        old: &mut Connection,
    ) -> Result<Connection> {
        machine.wait("the agent of the next boot", BOOT_LIMIT, |_| {
            if let Some(answer) = old.poll() {
                bail!("the guest answered and did not go down: {answer}");
            }
            self.accept()
        })
    }

    fn accept(&self) -> Result<Option<Connection>> {
        match self.0.accept() {
            Ok((stream, _)) => Connection::new(stream).map(Some),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("wait for the agent"),
        }
    }
}

/// A connected agent.
pub(super) struct Connection {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
    /// What has been read of an answer.
    line: Vec<u8>,
}

impl Connection {
    fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TICK))?;
        Ok(Self {
            reader: BufReader::new(stream.try_clone()?),
            writer: stream,
            line: Vec::new(),
        })
    }

    /// Asks the agent to run a step.
    ///
    /// # Errors
    ///
    /// When the connection is broken.
    pub(super) fn send(&mut self, ask: &Ask) -> Result<()> {
        let mut line = serde_json::to_string(ask)?;
        line.push('\n');
        self.writer
            .write_all(line.as_bytes())
            .context("the agent closed the connection")
    }

    /// Waits for the answer to the last [`Connection::send`].
    ///
    /// # Errors
    ///
    /// When the guest or the machine ends, or nothing comes.
    pub(super) fn receive(
        &mut self,
        machine: &mut guest::Guest,
        listener: &Listener,
    ) -> Result<Answer> {
        let limit = patience::scaled(STEP_LIMIT);
        let start = Instant::now();
        loop {
            if let Some(line) = self.read_line().context("read the agent's answer")? {
                return Ok(serde_json::from_str(&line)?);
            }
            if let Some(status) = machine.exit_status()? {
                bail!("vmsrs run ended ({status})");
            }
            if listener.accept()?.is_some() {
                bail!("the guest booted again");
            }
            if start.elapsed() >= limit {
                bail!("no answer within {limit:?}");
            }
        }
    }

    /// An answer that has come or comes within [`TICK`]. A broken connection is none: that guest is gone.
    fn poll(&mut self) -> Option<String> {
        self.read_line().ok().flatten()
    }

    /// The next line; `None` if it is not complete after [`TICK`].
    fn read_line(&mut self) -> io::Result<Option<String>> {
        match self.reader.read_until(b'\n', &mut self.line) {
            Ok(_) if self.line.ends_with(b"\n") => {
                let line = std::mem::take(&mut self.line);
                Ok(Some(String::from_utf8_lossy(&line).into_owned()))
            }
            Ok(_) => Err(io::Error::other("the agent closed the connection")),
            Err(error) if is_timeout(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (Connection::new(server).unwrap(), client)
    }

    #[test]
    fn an_answer_in_pieces_is_read_whole() {
        let (mut connection, mut agent) = pair();
        agent.write_all(b"half ").unwrap();
        assert_eq!(connection.read_line().unwrap(), None);
        agent.write_all(b"and half\n").unwrap();
        let line = connection.read_line().unwrap();
        assert_eq!(line.as_deref(), Some("half and half\n"));
    }

    #[test]
    fn a_closed_connection_is_an_error_and_not_an_answer() {
        let (mut connection, agent) = pair();
        drop(agent);
        assert!(connection.read_line().is_err());
        assert_eq!(connection.poll(), None);
    }
}
