//! The thread that carries standard input to the guest's console, and the terminal's raw mode.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread::{self, JoinHandle};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::exit::{ExitReason, StopHandle};
use super::serial::SerialPort;
use crate::sandbox::{self, Role};

/// The key that starts a command to the console itself: Ctrl-A, as in QEMU.
const ESCAPE: u8 = 0x01;
/// After the escape key: end the VM.
const QUIT: u8 = b'x';

/// The terminal's settings before raw mode, while it is in raw mode.
static SAVED: Mutex<Option<libc::termios>> = Mutex::new(None);

fn saved() -> std::sync::MutexGuard<'static, Option<libc::termios>> {
    SAVED.lock().unwrap_or_else(PoisonError::into_inner)
}

extern "C" fn restore_terminal() {
    if let Some(settings) = saved().take() {
        // SAFETY: the settings were read from the same descriptor.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &settings) };
    }
}

/// Raw mode of the terminal on standard input, until dropped. An exit of the process without
/// unwinding restores the terminal as well.
struct RawMode;

impl RawMode {
    /// Does nothing when standard input is not a terminal.
    fn enter() -> io::Result<Self> {
        // SAFETY: all-zero is a valid value of this plain structure of the C library.
        let mut settings: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the structure is valid for the call to fill.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, &mut settings) } != 0 {
            return Ok(Self);
        }
        *saved() = Some(settings);
        // Once, however often the guest starts again.
        static AT_EXIT: Once = Once::new();
        AT_EXIT.call_once(|| {
            // SAFETY: the handler is a function without preconditions.
            unsafe { libc::atexit(restore_terminal) };
        });
        let mut raw = settings;
        // SAFETY: the structure is valid.
        unsafe { libc::cfmakeraw(&mut raw) };
        // Output stays cooked: our own messages come on the same terminal.
        raw.c_oflag = settings.c_oflag;
        // SAFETY: the structure is valid.
        if unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore_terminal();
    }
}

/// The thread that carries standard input to the guest; dropping it ends the thread and restores
/// the terminal.
pub(crate) struct InputThread {
    quit: EventFd,
    thread: Option<JoinHandle<()>>,
    _raw: RawMode,
}

impl InputThread {
    pub(crate) fn spawn(port: Arc<Mutex<SerialPort>>, stop: StopHandle) -> io::Result<Self> {
        let quit = EventFd::new(EFD_NONBLOCK)?;
        let thread_quit = quit.try_clone()?;
        let raw = RawMode::enter()?;
        let thread = thread::Builder::new()
            .name("console".into())
            .spawn(move || {
                sandbox::confine(Role::Stream);
                pump(&port, &stop, &thread_quit);
            })?;
        Ok(Self {
            quit,
            thread: Some(thread),
            _raw: raw,
        })
    }
}

impl Drop for InputThread {
    fn drop(&mut self) {
        let _ = self.quit.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(port: &Mutex<SerialPort>) -> std::sync::MutexGuard<'_, SerialPort> {
    port.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for input, for room in the guest's buffer or for the end, in turn.
fn pump(port: &Mutex<SerialPort>, stop: &StopHandle, quit: &EventFd) {
    let emptied = lock(port).emptied();
    let mut filter = EscapeFilter::default();
    let mut pending: Vec<u8> = Vec::new();
    let mut open = true;
    loop {
        let accepted = lock(port).receive(&pending);
        pending.drain(..accepted);
        // While the guest's buffer is full no more is read: what the user pastes waits in the
        // terminal's own buffer.
        let source = if !pending.is_empty() {
            emptied.as_raw_fd()
        } else if open {
            libc::STDIN_FILENO
        } else {
            -1
        };
        if !wait_for(source, quit) {
            return;
        }
        if source == libc::STDIN_FILENO {
            let mut buffer = [0; 64];
            let count = read_stdin(&mut buffer);
            open = count != 0;
            if filter.feed(&buffer[..count], &mut pending) {
                stop.stop(ExitReason::Stopped("the console's quit key"));
            }
        } else {
            let _ = emptied.read();
        }
    }
}

/// Waits until `source` is readable; false when `quit` is.
fn wait_for(source: i32, quit: &EventFd) -> bool {
    let poll = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut fds = [poll(quit.as_raw_fd()), poll(source)];
    loop {
        // SAFETY: the array is valid for its length.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as _, -1) };
        if ready > 0 {
            return fds[0].revents == 0;
        }
        if ready < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return false;
        }
    }
}

/// Reads what there is; 0 at the end of the input or on an error, which both mean that no more
/// will come.
fn read_stdin(buffer: &mut [u8]) -> usize {
    // SAFETY: the buffer is valid for its length. Rust's own handle would buffer more than the
    // guest can take.
    let count = unsafe { libc::read(libc::STDIN_FILENO, buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(count).unwrap_or(0)
}

/// Takes the console's own commands out of the input.
#[derive(Default)]
struct EscapeFilter {
    escaped: bool,
}

impl EscapeFilter {
    /// Appends to `output` what is for the guest; true when the user asked to quit. The escape
    /// key typed twice goes to the guest once.
    fn feed(&mut self, input: &[u8], output: &mut Vec<u8>) -> bool {
        for &byte in input {
            if std::mem::take(&mut self.escaped) {
                match byte {
                    QUIT => return true,
                    ESCAPE => output.push(ESCAPE),
                    other => output.extend([ESCAPE, other]),
                }
            } else if byte == ESCAPE {
                self.escaped = true;
            } else {
                output.push(byte);
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_input_passes_and_the_quit_key_is_taken_out() {
        let mut filter = EscapeFilter::default();
        let mut output = Vec::new();
        assert!(!filter.feed(b"ls\r", &mut output));
        assert!(!filter.feed(b"\x01\x01\x01b\x01", &mut output));
        assert_eq!(output, b"ls\r\x01\x01b");
        assert!(filter.feed(b"x", &mut output));
    }
}
