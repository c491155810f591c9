//! What the program says, to whoever may not be listening.
//!
//! A full disk, a pipe whose reader is gone or that nobody reads, and a terminal that was stopped must neither end
//! the program nor make it wait. [`say`] and the log ignore failures; from [`relay_stderr`] on they go through a
//! [`Relay`], as the guest's console does.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use crate::sandbox::{self, Role};

/// Bytes that wait for their target, at most.
const ROOM: usize = 1 << 20;

/// Bytes that are written at a time, at most.
const CHUNK: usize = 1 << 16;

/// What comes within this time is written together: a guest's console comes byte by byte, and to wake a thread costs more
/// than to write.
const GATHER: Duration = Duration::from_millis(1);

/// Time until a target is tried again that takes nothing now, and says so instead of waiting.
const RETRY: Duration = Duration::from_millis(20);

/// How long [`Relay::finish`] waits for a target that takes nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// A queue of bytes, and a thread that writes them to their target. Whoever adds to it never waits: what finds no
/// room, and what cannot be written, is lost and counted. Clones are the same queue.
#[derive(Clone)]
pub(crate) struct Relay {
    owner: Arc<Owner>,
}

/// Ends the thread, when all is written.
struct Owner {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Signalled when there is something to write, when something has been written, and at the end.
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<u8>,
    /// Bytes that the thread is writing.
    writing: usize,
    /// Bytes that it has written.
    written: u64,
    lost: u64,
    is_closed: bool,
}

impl Relay {
    /// Starts the thread `name`, which writes to `target`.
    ///
    /// # Errors
    ///
    /// Fails when the system has no thread left.
    pub(crate) fn new(name: &str, target: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
        });
        let owner = Owner {
            shared: shared.clone(),
        };
        thread::Builder::new().name(name.into()).spawn(move || {
            sandbox::confine(Role::Stream);
            shared.write_to(target);
        })?;
        Ok(Self {
            owner: Arc::new(owner),
        })
    }

    /// Adds bytes to the queue, as many as there is room for.
    pub(crate) fn add(&self, bytes: &[u8]) {
        let mut queue = self.owner.shared.lock();
        // Else the thread has been woken, or looks again when it has written.
        let wakes = queue.is_idle();
        let taken = bytes.len().min(ROOM - queue.waiting.len());
        queue.waiting.extend(&bytes[..taken]);
        queue.lost += (bytes.len() - taken) as u64;
        drop(queue);
        if wakes {
            self.owner.shared.changed.notify_all();
        }
    }

    /// Waits until everything is written. If the target takes nothing for [`PATIENCE`], the rest is lost, and the
    /// result false.
    pub(crate) fn finish(&self) -> bool {
        let shared = &self.owner.shared;
        let mut queue = shared.lock();
        while !queue.is_idle() {
            let before = queue.written;
            let waits = |queue: &mut Queue| queue.written == before && !queue.is_idle();
            let (now, _) = shared
                .changed
                .wait_timeout_while(queue, PATIENCE, waits)
                .unwrap_or_else(PoisonError::into_inner);
            queue = now;
            if queue.written == before && !queue.is_idle() {
                queue.lost += (queue.waiting.len() + queue.writing) as u64;
                queue.waiting.clear();
                return false;
            }
        }
        true
    }

    /// Bytes that were lost so far.
    pub(crate) fn lost(&self) -> u64 {
        self.owner.shared.lock().lost
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_all();
    }
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.writing == 0
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Plain values, whole after every statement.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread's work.
    fn write_to(&self, mut target: impl Write) {
        let mut chunk = Vec::with_capacity(CHUNK);
        loop {
            let waits = |queue: &mut Queue| queue.waiting.is_empty() && !queue.is_closed;
            let queue = self
                .changed
                .wait_while(self.lock(), waits)
                .unwrap_or_else(PoisonError::into_inner);
            if queue.waiting.is_empty() {
                return;
            }
            drop(queue);
            thread::sleep(GATHER);
            let mut queue = self.lock();
            let length = queue.waiting.len().min(CHUNK);
            chunk.clear();
            chunk.extend(queue.waiting.drain(..length));
            queue.writing = length;
            drop(queue);
            self.write_chunk(&mut target, &chunk);
        }
    }

    fn write_chunk(&self, target: &mut impl Write, mut rest: &[u8]) {
        while !rest.is_empty() {
            match target.write(rest) {
                Ok(count) if count != 0 => {
                    rest = &rest[count..];
                    let mut queue = self.lock();
                    queue.writing -= count;
                    queue.written += count as u64;
                    drop(queue);
                    self.changed.notify_all();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY),
                Ok(_) | Err(_) => break,
            }
        }
        let mut queue = self.lock();
        queue.writing = 0;
        queue.lost += rest.len() as u64;
        drop(queue);
        self.changed.notify_all();
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").finish_non_exhaustive()
    }
}

/// Where standard error goes, once a command cannot wait for it.
static STDERR: OnceLock<Relay> = OnceLock::new();

/// Lets [`say`] and the log never wait from now on. Threads inherit the signal mask: to be called when it is set.
///
/// # Errors
///
/// Fails when the system has no thread or descriptor left.
pub(crate) fn relay_stderr() -> io::Result<()> {
    if STDERR.get().is_none() {
        let target = own_file(io::stderr())?;
        // Nobody else sets it meanwhile, and a second one would do as well.
        let _ = STDERR.set(Relay::new("stderr", target)?);
    }
    Ok(())
}

/// Waits until standard error has what was said, unless it takes nothing.
pub(crate) fn finish_stderr() {
    if let Some(relay) = STDERR.get() {
        relay.finish();
    }
}

/// A line of the program on standard error. That it cannot be written is nobody's trouble.
pub(crate) fn say(line: fmt::Arguments<'_>) {
    write_stderr(format!("vmsrs: {line}\n").as_bytes());
}

/// The log's target.
pub(crate) struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_stderr(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_stderr(bytes: &[u8]) {
    match STDERR.get() {
        Some(relay) => relay.add(bytes),
        None => {
            let _ = io::stderr().write_all(bytes);
        }
    }
}

/// A stream of the process without the library's buffer and lock, which a writer that waits would keep from others.
///
/// # Errors
///
/// Fails when the system has no descriptor left.
pub(crate) fn own_file(stream: impl AsFd) -> io::Result<File> {
    Ok(stream.as_fd().try_clone_to_owned()?.into())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn everything_is_written_in_order() {
        let (mut reader, writer) = io::pipe().unwrap();
        let relay = Relay::new("test", writer).unwrap();
        let reads = thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        });
        let mut expected = Vec::new();
        for number in 0..10_000 {
            let line = format!("line {number}\n");
            relay.add(line.as_bytes());
            expected.extend_from_slice(line.as_bytes());
        }
        assert!(relay.finish());
        assert_eq!(relay.lost(), 0);
        drop(relay);
        assert_eq!(reads.join().unwrap(), expected);
    }

    #[test]
    fn nobody_waits_for_a_pipe_that_is_not_read() {
        let (mut reader, writer) = io::pipe().unwrap();
        let relay = Relay::new("test", writer).unwrap();
        let line = [b'x'; 1000];
        let lines = 3 * ROOM / line.len();
        for _ in 0..lines {
            relay.add(&line);
        }
        assert!(!relay.finish(), "the target takes nothing");
        let lost = relay.lost();
        drop(relay);
        let mut taken = Vec::new();
        reader.read_to_end(&mut taken).unwrap();
        // What the pipe had room for, and the part that was being written.
        assert!(taken.len() as u64 + lost >= (lines * line.len()) as u64);
        assert!(taken.len() <= 2 * CHUNK + (1 << 16), "{}", taken.len());
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (reader, gone) = io::pipe().unwrap();
        drop(reader);
        for relay in [Relay::new("test", full), Relay::new("test", gone)] {
            let relay = relay.unwrap();
            relay.add(b"lost");
            assert!(relay.finish(), "nothing is left to write");
            assert_eq!(relay.lost(), 4);
        }
    }

    /// Takes a byte at a time, and sometimes says that it cannot now.
    struct Slow(mpsc::Sender<u8>, bool);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = !self.1;
            match self.1 {
                true => Err(io::ErrorKind::WouldBlock.into()),
                false => {
                    self.0.send(bytes[0]).unwrap();
                    Ok(1)
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_target_that_takes_little_gets_all() {
        let (sender, receiver) = mpsc::channel();
        let relay = Relay::new("test", Slow(sender, false)).unwrap();
        relay.add(b"slowly");
        assert!(relay.finish());
        drop(relay);
        assert_eq!(receiver.iter().collect::<Vec<_>>(), b"slowly");
    }
}
