//! A daemon that this program starts: its process, from start to end.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::devices::vhost_user::DaemonStatus;
use crate::sandbox::{self, Role};

/// How long a daemon may take to end after SIGTERM, in milliseconds.
const PATIENCE: libc::c_int = 10_000;

/// Lines of a daemon that are passed on, at most.
const LINES_MAX: usize = 100;

/// A running daemon; ended, and waited for, when dropped.
#[derive(Debug)]
pub(super) struct Daemon {
    process: OwnedFd,
    words: Arc<Mutex<Words>>,
    keeper: Option<JoinHandle<()>>,
}

/// What it said, and what that is to the operator.
#[derive(Debug, Default)]
struct Words {
    /// Not before it has started, and not when it is ended on purpose.
    supervised: Option<Arc<DaemonStatus>>,
    last: String,
    lines: usize,
    end: Option<String>,
}

impl Words {
    fn add(&mut self, line: &str) {
        let line = line.trim();
        if line.is_empty() {
            return;
        }
        line.clone_into(&mut self.last);
        if let Some(status) = &self.supervised {
            self.lines += 1;
            if self.lines <= LINES_MAX {
                log::warn!("{}: {line}", status.option);
            }
        }
    }

    fn end(&mut self, how: String) {
        if let Some(status) = &self.supervised {
            status.ended(&how);
        }
        self.end = Some(how);
    }
}

/// A connection that a program accepts which is started with the other end as a listening socket. The socket has no name any
/// more when this returns.
pub(super) fn connect() -> io::Result<(UnixListener, UnixStream)> {
    let folder = private_folder()?;
    let socket = folder.join("s");
    let connected = UnixListener::bind(&socket)
        .and_then(|listener| UnixStream::connect(&socket).map(|stream| (listener, stream)));
    let _ = fs::remove_file(&socket);
    let _ = fs::remove_dir(&folder);
    connected
}

/// A new folder that nobody else may enter.
fn private_folder() -> io::Result<std::path::PathBuf> {
    let parent = std::env::temp_dir();
    let pid = std::process::id();
    let mut number = 0u32;
    loop {
        let folder = parent.join(format!("vmsrs-{pid}-{number}"));
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 1000 => {
                number += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

impl Daemon {
    /// Starts `program`. It inherits nothing but the listening socket, under the number that is in the arguments, and the
    /// end of this process ends it.
    pub(super) fn start(
        program: &Path,
        arguments: Vec<OsString>,
        listener: &UnixListener,
    ) -> io::Result<(Self, u32)> {
        let socket = listener.as_raw_fd();
        let parent = std::process::id();
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // What is typed on this program's terminal is not for it.
            .process_group(0);
        // SAFETY: the closure only makes system calls, which may be made between fork and exec.
        unsafe { command.pre_exec(move || leave_behind(socket, parent)) };
        let mut child = command.spawn()?;
        let pid = child.id();
        let output = child.stderr.take();
        let started = descriptor_of(pid).and_then(|process| {
            let watched = process.try_clone()?;
            let words = Arc::<Mutex<Words>>::default();
            let kept = words.clone();
            let keeper = thread::Builder::new()
                .name("daemon".into())
                .spawn(move || keep(child, output, &watched, &kept))?;
            Ok(Self {
                process,
                words,
                keeper: Some(keeper),
            })
        });
        Ok((started?, pid))
    }

    /// From now on its end is a loss, and what it says is for the operator.
    pub(super) fn supervise(&self, status: Arc<DaemonStatus>) {
        let mut words = lock(&self.words);
        if let Some(how) = &words.end {
            status.ended(how);
        }
        words.supervised = Some(status);
    }

    /// Ends it, and returns what it said last.
    pub(super) fn last_words(self) -> String {
        let words = self.words.clone();
        drop(self);
        let words = lock(&words);
        words.last.clone()
    }

    fn signal(&self, signal: libc::c_int) {
        let fd = self.process.as_raw_fd();
        let information = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open, and the kernel fills the information in by itself. That the process has ended is
        // no error here.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, information, 0) };
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        lock(&self.words).supervised = None;
        self.signal(libc::SIGTERM);
        if !is_readable(self.process.as_raw_fd(), PATIENCE) {
            self.signal(libc::SIGKILL);
        }
        if let Some(keeper) = self.keeper.take() {
            // Its panic's message is on standard error already.
            let _ = keeper.join();
        }
    }
}

fn lock(words: &Mutex<Words>) -> MutexGuard<'_, Words> {
    // Whole after every statement.
    words.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the new process does before it becomes the daemon: nothing of this one is left in it but the socket.
fn leave_behind(socket: RawFd, parent: u32) -> io::Result<()> {
    let check = |result: libc::c_long| match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: these calls touch no memory, and the socket is open.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM).into())?;
        if libc::getppid() as u32 != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        check(libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        ))?;
        check(libc::fcntl(socket, libc::F_SETFD, 0).into())
    }
}

/// A descriptor of a process that has not been waited for.
fn descriptor_of(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made it, for nobody else.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Passes on what a daemon says, until it ends.
fn keep(mut child: Child, output: Option<ChildStderr>, process: &OwnedFd, words: &Mutex<Words>) {
    sandbox::confine(Role::Keeper);
    let mut line = Vec::new();
    if let Some(mut output) = output {
        // What others hold open that it has started does not matter once it has ended.
        while wait_for(output.as_raw_fd(), process.as_raw_fd()) {
            let mut bytes = [0; 4096];
            let count = output.read(&mut bytes).unwrap_or(0);
            if count == 0 {
                break;
            }
            for &byte in &bytes[..count] {
                match byte {
                    b'\n' => lock(words).add(&String::from_utf8_lossy(&std::mem::take(&mut line))),
                    _ if line.len() < 1024 => line.push(byte),
                    _ => {}
                }
            }
        }
    }
    let mut words_left = lock(words);
    words_left.add(&String::from_utf8_lossy(&line));
    drop(words_left);
    let how = match child.wait() {
        Ok(status) => describe(status),
        Err(error) => format!("its process cannot be waited for: {error}"),
    };
    lock(words).end(how);
}

fn describe(status: ExitStatus) -> String {
    format!("its process has ended ({status})")
}

/// Waits until there is something to read, or the process has ended: false if there is nothing to read then.
fn wait_for(output: RawFd, process: RawFd) -> bool {
    let watch = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    loop {
        let mut watched = [watch(output), watch(process)];
        // SAFETY: an array of two, which lives for the call.
        let count = unsafe { libc::poll(watched.as_mut_ptr(), 2, -1) };
        if count > 0 {
            return watched[0].revents != 0;
        }
    }
}

/// Whether a descriptor is readable within so many milliseconds.
fn is_readable(fd: RawFd, limit: libc::c_int) -> bool {
    let mut watched = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one element, which lives for the call.
    unsafe { libc::poll(&raw mut watched, 1, limit) > 0 }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn shell(script: &str) -> (Daemon, u32, UnixStream) {
        let (listener, stream) = connect().unwrap();
        let script = script.replace("SOCKET", &listener.as_raw_fd().to_string());
        let arguments = vec!["-c".into(), script.into()];
        let (daemon, pid) = Daemon::start("/bin/sh".as_ref(), arguments, &listener).unwrap();
        (daemon, pid, stream)
    }

    #[test]
    fn the_connection_has_no_name() {
        let (listener, mut stream) = connect().unwrap();
        let name = listener.local_addr().unwrap();
        let path = name.as_pathname().unwrap();
        assert!(!path.exists() && !path.parent().unwrap().exists());
        let (mut other, _) = listener.accept().unwrap();
        other.write_all(b"x").unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn a_daemon_inherits_the_socket_and_nothing_else() {
        const NUMBER: RawFd = 900;
        let file = fs::File::open("/dev/null").unwrap();
        // SAFETY: the descriptor is open; the new one is what a library might leave inheritable.
        let left = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD, NUMBER) };
        assert!(left >= NUMBER);
        // SAFETY: the descriptor was just made, for nobody else.
        let left = unsafe { OwnedFd::from_raw_fd(left) };
        let (daemon, ..) = shell("cd /proc/self/fd && echo * >&2");
        let keeper = &daemon.keeper;
        while !keeper.as_ref().unwrap().is_finished() {
            thread::yield_now();
        }
        let words = daemon.last_words();
        // The shell may have opened the folder.
        assert!((4..=5).contains(&words.split(' ').count()), "{words}");
        assert!(
            !words
                .split(' ')
                .any(|word| word == left.as_raw_fd().to_string())
        );
    }

    #[test]
    fn an_end_is_told_once_it_is_supervised() {
        let (daemon, pid, stream) = shell("echo out of order >&2; exit 3");
        let status = Arc::new(DaemonStatus::new("--disk x".into(), Some(pid), ""));
        daemon.supervise(status.clone());
        // The end of the process closes the socket.
        drop(stream);
        while !daemon.keeper.as_ref().unwrap().is_finished() {
            thread::yield_now();
        }
        assert!(status.is_lost());
        let state = format!("{:?}", status.state());
        assert!(state.contains("exit status: 3"), "{state}");
        assert_eq!(daemon.last_words(), "out of order");
    }

    #[test]
    fn a_dropped_daemon_has_ended_and_is_not_lost() {
        let (daemon, pid, _stream) = shell("exec sleep 600");
        let status = Arc::new(DaemonStatus::new("--disk x".into(), Some(pid), ""));
        daemon.supervise(status.clone());
        drop(daemon);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        assert!(!status.is_lost());
    }
}
