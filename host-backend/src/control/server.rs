//! The server: one thread that serves every connection as far as it goes without waiting, so that
//! no client can hold up another or the VM.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::socket::{BoundSocket, Folder};
use super::{Operator, Reason, Response, answer, refuse};
use crate::sandbox::{self, Role};
use crate::vitals::Pulse;

/// Longest request in bytes.
const REQUEST_MAX: usize = 4096;
/// Maximum number of connections at a time.
const CONNECTIONS_MAX: usize = 16;
/// A connection on which nothing moves for this long is closed.
const IDLE: Duration = Duration::from_secs(30);
/// Time after which a client is tried again for which the system had no descriptor.
const SHORTAGE: Duration = Duration::from_millis(100);

/// Why the control socket could not be set up.
#[derive(Debug, Error)]
pub enum ServerError {
    /// A VM listens there.
    #[error(
        "the control socket {} is in use by a running VM: give this one another --name or \
         --socket",
        .0.display()
    )]
    Busy(PathBuf),
    /// Something else is there.
    #[error("{} exists and is not a socket: give another --socket", .0.display())]
    NoSocket(PathBuf),
    /// The system refused.
    #[error(
        "cannot listen at {}: check that its folder exists and is yours, or give another --socket",
        .path.display()
    )]
    Bind {
        /// The socket's path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// No thread or descriptor for the server.
    #[error("cannot start the control socket's thread")]
    Thread(#[source] io::Error),
}

/// The control socket of a VM; dropping it ends the server and removes the socket.
#[derive(Debug)]
pub struct Server {
    quit: EventFd,
    thread: Option<JoinHandle<()>>,
}

/// A control socket that is bound while its VM is still being made.
#[derive(Debug)]
pub struct Reservation {
    socket: BoundSocket,
}

impl Server {
    /// Listens at `path`, for this user alone. Clients wait until [`Reservation::serve`].
    ///
    /// # Errors
    ///
    /// Fails with a message that names the remedy, in particular when a running VM has the socket.
    pub fn reserve(path: &Path, folder: Folder) -> Result<Reservation, ServerError> {
        Ok(Reservation {
            socket: BoundSocket::bind(path, folder)?,
        })
    }
}

impl Reservation {
    /// Starts to answer clients.
    ///
    /// # Errors
    ///
    /// Fails when the system has no thread or descriptor left.
    pub fn serve(self, operator: Arc<dyn Operator>) -> Result<Server, ServerError> {
        let quit = EventFd::new(EFD_NONBLOCK).map_err(ServerError::Thread)?;
        let thread_quit = quit.try_clone().map_err(ServerError::Thread)?;
        let asked = Arc::new(EventFd::new(EFD_NONBLOCK).map_err(ServerError::Thread)?);
        let thread = thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                sandbox::confine(Role::Control);
                serve(&self.socket, &thread_quit, &asked, &*operator);
            })
            .map_err(ServerError::Thread)?;
        Ok(Server {
            quit,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.quit.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    last_moved: Instant,
    /// Close it when the output is written.
    closing: bool,
}

fn serve(socket: &BoundSocket, quit: &EventFd, asked: &Arc<EventFd>, operator: &dyn Operator) {
    let event = asked.clone();
    // An event that cannot be counted is pending.
    let pulse = Pulse::new("control", move || drop(event.write(1)));
    let mut connections: Vec<Connection> = Vec::new();
    let mut accepting = true;
    loop {
        pulse.beat();
        let listener = match accepting {
            true => socket.listener.as_raw_fd(),
            // Ignored by poll().
            false => -1,
        };
        let mut fds = vec![
            poll_for(quit.as_raw_fd(), libc::POLLIN),
            poll_for(listener, libc::POLLIN),
            poll_for(asked.as_raw_fd(), libc::POLLIN),
        ];
        fds.extend(connections.iter().map(Connection::poll));
        let timeout = match (accepting, connections.is_empty()) {
            (false, _) => SHORTAGE.as_millis() as libc::c_int,
            (true, false) => IDLE.as_millis() as libc::c_int,
            (true, true) => -1,
        };
        // SAFETY: the array is valid for its length.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as _, timeout) };
        if ready < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            log::error!("control socket: {}", io::Error::last_os_error());
            return;
        }
        if fds[0].revents != 0 {
            // The answer to a request to stop is often still to be written.
            for connection in &mut connections {
                connection.write();
            }
            return;
        }
        if fds[2].revents != 0 {
            // It was zero already if that fails.
            let _ = asked.read();
        }
        for (connection, fd) in connections.iter_mut().zip(&fds[3..]) {
            if fd.revents != 0 {
                connection.advance(operator);
            }
        }
        connections.retain(Connection::is_open);
        accepting = fds[1].revents == 0 || accept(socket, &mut connections);
    }
}

/// Takes a client; false if the system has no descriptor or memory for it, so that it goes on
/// waiting.
fn accept(socket: &BoundSocket, connections: &mut Vec<Connection>) -> bool {
    let stream = match socket.listener.accept() {
        Ok((stream, _)) => stream,
        Err(error) => {
            log::debug!("control socket: cannot accept a client: {error}");
            let shortage = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
            return !error
                .raw_os_error()
                .is_some_and(|code| shortage.contains(&code));
        }
    };
    if let Err(error) = stream.set_nonblocking(true) {
        log::debug!("control socket: {error}");
        return true;
    }
    let mut connection = Connection {
        stream,
        input: Vec::new(),
        output: Vec::new(),
        last_moved: Instant::now(),
        closing: false,
    };
    if connections.len() < CONNECTIONS_MAX {
        connections.push(connection);
    } else {
        connection.respond(&refuse(Reason::Busy, "too many connections at a time"));
        connection.write();
    }
    true
}

impl Connection {
    fn poll(&self) -> libc::pollfd {
        // While a client does not take its answers no more requests are read.
        let events = if self.output.is_empty() {
            libc::POLLIN
        } else {
            libc::POLLOUT
        };
        poll_for(self.stream.as_raw_fd(), events)
    }

    fn is_open(&self) -> bool {
        let done = self.closing && self.output.is_empty();
        !done && self.last_moved.elapsed() < IDLE
    }

    /// Reads, answers and writes as far as it goes without waiting.
    fn advance(&mut self, operator: &dyn Operator) {
        self.write();
        if self.output.is_empty() {
            self.read();
        }
        // One answer at a time: a client that asks much and reads nothing must not fill memory.
        while self.output.is_empty() && self.answer_next(operator) {
            self.write();
        }
    }

    fn read(&mut self) {
        let mut buffer = [0; REQUEST_MAX];
        match self.stream.read(&mut buffer) {
            Ok(0) => {
                self.closing = true;
                // The last line may end with the input.
                if self.input.last().is_some_and(|&byte| byte != b'\n') {
                    self.input.push(b'\n');
                }
            }
            Ok(count) => {
                self.input.extend_from_slice(&buffer[..count]);
                self.last_moved = Instant::now();
            }
            Err(error) if would_wait(&error) => {}
            Err(_) => self.abandon(),
        }
    }

    /// Answers the next whole line that has been read; false if there is none.
    fn answer_next(&mut self, operator: &dyn Operator) -> bool {
        if let Some(end) = self.input.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            self.respond(&answer(operator, &line));
            true
        } else if self.input.len() >= REQUEST_MAX {
            self.input.clear();
            self.closing = true;
            self.respond(&refuse(Reason::Malformed, "the request is too long"));
            true
        } else {
            false
        }
    }

    fn respond(&mut self, response: &Response) {
        match serde_json::to_writer(&mut self.output, response) {
            Ok(()) => self.output.push(b'\n'),
            Err(error) => {
                log::error!("control socket: {error}");
                self.abandon();
            }
        }
    }

    fn write(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => {
                    self.output.drain(..count);
                    self.last_moved = Instant::now();
                }
                Err(error) if would_wait(&error) => return,
                Err(_) => return self.abandon(),
            }
        }
    }

    /// The client has gone away: nothing more can be written.
    fn abandon(&mut self) {
        self.output.clear();
        self.closing = true;
    }
}

fn would_wait(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted)
}

fn poll_for(fd: libc::c_int, events: libc::c_short) -> libc::pollfd {
    libc::pollfd {
        fd,
        events,
        revents: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::control::{
        Client, ClientError, DomainList, DomainPosition, Request, ScrubStep, VmStatus,
    };
    use crate::control::{
        GuestDownFacts, IncidentDetail, IncidentFacts, IncidentOutcome, IncidentSummary,
    };
    use crate::engine::{Position, ScrubCounts};

    #[derive(Default)]
    struct Machine {
        pressed: AtomicBool,
        stopped: AtomicBool,
    }

    fn incident(number: u64) -> IncidentSummary {
        IncidentSummary {
            number,
            at_ms: 1,
            kind: "abort".into(),
            outcome: IncidentOutcome::Recovered,
            app: Some("ledger".into()),
            domain: Some("user-7".into()),
            address: Some(0x1000),
        }
    }

    impl Operator for Machine {
        fn status(&self) -> VmStatus {
            VmStatus {
                name: "vm".into(),
                version: "1".into(),
                pid: 1,
                uptime_ms: 2,
                vcpus: 3,
                memory_bytes: 4,
                recovery: Default::default(),
                restarts: 0,
                last_restart: None,
                console_lost_bytes: 0,
                network: None,
                daemons: Vec::new(),
                device_errors: Vec::new(),
            }
        }

        fn incidents(&self) -> Vec<IncidentSummary> {
            // More than a socket's buffer holds.
            (0..20_000).map(incident).collect()
        }

        fn incident(&self, id: u64) -> Option<IncidentDetail> {
            (id == 7).then(|| IncidentDetail {
                summary: incident(7),
                instruction: None,
                facts: IncidentFacts::GuestDown(GuestDownFacts {
                    reason: "a test".into(),
                    pool_frames: 0,
                    domains: 0,
                    staged_pages: 0,
                }),
            })
        }

        fn domains(&self, app: Option<&str>, _: Option<DomainPosition>) -> Option<DomainList> {
            app.is_none().then(DomainList::default)
        }

        fn scrub(
            &self,
            app: Option<&str>,
            _: Option<&str>,
            from: Option<Position>,
        ) -> Option<ScrubStep> {
            (app == Some("ledger")).then_some(ScrubStep {
                found: ScrubCounts::default(),
                pages: 7,
                next: from,
            })
        }

        fn press_power_button(&self) {
            self.pressed.store(true, Ordering::Relaxed);
        }

        fn stop(&self) {
            self.stopped.store(true, Ordering::Relaxed);
        }
    }

    struct Bench {
        place: tempfile::TempDir,
        machine: Arc<Machine>,
        server: Option<Server>,
    }

    impl Bench {
        fn new() -> Self {
            let place = tempfile::tempdir().unwrap();
            let machine = Arc::new(Machine::default());
            let server = Server::reserve(&place.path().join("s"), Folder::MustExist).unwrap();
            Self {
                server: Some(server.serve(machine.clone()).unwrap()),
                machine,
                place,
            }
        }

        fn path(&self) -> PathBuf {
            self.place.path().join("s")
        }

        fn client(&self) -> Client {
            Client::connect(&self.path()).unwrap()
        }

        fn stream(&self) -> UnixStream {
            let stream = UnixStream::connect(self.path()).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(300)))
                .unwrap();
            stream
        }
    }

    /// Processor time of this process.
    fn processor_time() -> Duration {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the call fills the structure.
        unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    #[test]
    fn a_shortage_of_descriptors_does_not_make_the_server_spin() {
        const CHILD: &str = "VMSRS_TEST_SHORTAGE";
        const NAME: &str =
            "control::server::tests::a_shortage_of_descriptors_does_not_make_the_server_spin";
        // In a process of its own, which can do without descriptors.
        if std::env::var_os(CHILD).is_none() {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            let child = child.args(["--exact", NAME]).env(CHILD, "1");
            assert!(child.status().unwrap().success());
            return;
        }
        let bench = Bench::new();
        let waiting = bench.stream();
        let limit = libc::rlimit {
            rlim_cur: 64,
            rlim_max: 64,
        };
        // SAFETY: the structure is valid for the call.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
        let mut fillers: Vec<_> = std::iter::from_fn(|| waiting.try_clone().ok()).collect();
        // The one descriptor that is left is the client's own.
        drop(fillers.pop());
        let mut client = bench.stream();
        client.write_all(b"{\"request\":\"status\"}\n").unwrap();
        let before = processor_time();
        thread::sleep(Duration::from_secs(1));
        let used = processor_time() - before;
        assert!(used < Duration::from_millis(50), "{used:?}");
        drop(fillers);
        let mut answer = String::new();
        BufReader::new(client).read_line(&mut answer).unwrap();
        assert!(answer.starts_with("{\"response\":\"status\""), "{answer}");
    }

    #[test]
    fn every_request_gets_its_response() {
        let bench = Bench::new();
        let mut client = bench.client();
        let status = client.ask(Request::Status {}).unwrap();
        assert_eq!(status, Response::Status(Box::new(bench.machine.status())));
        let incidents = client.ask(Request::Incidents {}).unwrap();
        assert_eq!(incidents, Response::Incidents(bench.machine.incidents()));
        let detail = client.ask(Request::Incident { id: 7 }).unwrap();
        let expected = bench.machine.incident(7).unwrap();
        assert_eq!(detail, Response::Incident(Box::new(expected)));
        assert_eq!(client.ask(Request::Stop {}).unwrap(), Response::Stopping);
        assert!(bench.machine.stopped.load(Ordering::Relaxed));
    }

    #[test]
    fn an_unknown_incident_is_an_error_and_the_connection_stays() {
        let bench = Bench::new();
        let mut client = bench.client();
        match client.ask(Request::Incident { id: 9 }) {
            Err(ClientError::Refused(refusal)) => {
                assert_eq!(refusal.reason, Reason::NoSuchIncident);
            }
            other => panic!("{other:?}"),
        }
        client.ask(Request::Status {}).unwrap();
    }

    #[test]
    fn malformed_lines_are_refused_one_by_one() {
        let bench = Bench::new();
        let mut stream = bench.stream();
        let lines: [&[u8]; 6] = [
            b"\n",
            b"{}\n",
            b"{\"request\":\"reboot\"}\n",
            b"{\"request\":\"status\",\"more\":1}\n",
            b"{\"request\":\"scrub\",\"app\":null,\"domain\":\"user-7\"}\n",
            b"\xff\xfe\x00\n",
        ];
        stream.write_all(&lines.concat()).unwrap();
        stream.write_all(b"{\"request\":\"status\"}\n").unwrap();
        let mut reader = BufReader::new(stream).lines();
        for _ in lines {
            let line = reader.next().unwrap().unwrap();
            assert!(line.contains("\"malformed\""), "{line}");
        }
        let line = reader.next().unwrap().unwrap();
        assert!(line.starts_with("{\"response\":\"status\""), "{line}");
    }

    #[test]
    fn the_last_request_needs_no_newline() {
        let bench = Bench::new();
        let mut stream = bench.stream();
        let requests = b"{\"request\":\"incident\",\"id\":7}\n{\"request\":\"status\"}";
        stream.write_all(requests).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).unwrap();
        let answers: Vec<_> = answers.lines().collect();
        assert_eq!(answers.len(), 2, "{answers:?}");
        assert!(answers[1].starts_with("{\"response\":\"status\""));
    }

    #[test]
    fn overlong_request_closes_the_connection() {
        let bench = Bench::new();
        let mut stream = bench.stream();
        stream.write_all(&[b'x'; REQUEST_MAX]).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("too long"), "{answer}");
    }

    #[test]
    fn slow_clients_do_not_block_others() {
        let bench = Bench::new();
        let mut half = bench.stream();
        half.write_all(b"{\"request\":").unwrap();
        let mut deaf = bench.stream();
        for _ in 0..100 {
            deaf.write_all(b"{\"request\":\"incidents\"}\n").unwrap();
        }
        bench.client().ask(Request::Status {}).unwrap();
        half.write_all(b"\"status\"}\n").unwrap();
        let mut line = String::new();
        BufReader::new(half).read_line(&mut line).unwrap();
        assert!(line.starts_with("{\"response\":\"status\""), "{line}");
    }

    #[test]
    fn too_many_connections_are_told_so() {
        let bench = Bench::new();
        let clients: Vec<_> = (0..CONNECTIONS_MAX)
            .map(|_| {
                let mut client = bench.client();
                client.ask(Request::Status {}).unwrap();
                client
            })
            .collect();
        let mut answer = String::new();
        bench.stream().read_to_string(&mut answer).unwrap();
        assert!(answer.contains("\"busy\""), "{answer}");
        drop(clients);
    }

    #[test]
    fn server_end_removes_socket_and_connections() {
        let mut bench = Bench::new();
        let mut stream = bench.stream();
        bench.client().ask(Request::Status {}).unwrap();
        drop(bench.server.take());
        assert!(!bench.path().exists());
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        assert!(matches!(
            Client::connect(&bench.path()),
            Err(ClientError::Connect { .. })
        ));
    }
}
