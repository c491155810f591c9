//! Messages to the service manager that started this process (`sd_notify(3)`).

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::time::Duration;

/// How long a message waits for a manager that does not read.
const PATIENCE: Duration = Duration::from_secs(1);

/// The service manager that waits for messages.
#[derive(Debug)]
pub(crate) struct ServiceManager {
    /// Connected to the manager.
    socket: UnixDatagram,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The manager that the environment names, if there is one. One that cannot be reached is none, with a warning.
    pub(crate) fn from_environment() -> Option<Self> {
        let path = env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty())?;
        let variable = |name| env::var(name).ok();
        let watchdog = watchdog(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"));
        match connect(&path) {
            Ok(socket) => Some(Self { socket, watchdog }),
            Err(error) => {
                log::warn!("the service manager of NOTIFY_SOCKET cannot be reached: {error}");
                None
            }
        }
    }

    /// The time after which the manager ends this process unless it gets `WATCHDOG=1`, if it does that.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Sends a message: lines of `NAME=VALUE`. A manager that is gone changes nothing.
    pub(crate) fn tell(&self, message: &str) {
        if let Err(error) = self.socket.send(message.as_bytes()) {
            log::debug!("the service manager is not told: {error}");
        }
    }
}

/// A socket for messages to the manager at `path`. It is connected, so that its thread needs no right to send elsewhere.
fn connect(path: &OsString) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.connect_addr(&address(path)?)?;
    Ok(socket)
}

/// The address that the variable has: a path, or `@` and an abstract name.
fn address(path: &OsString) -> io::Result<SocketAddr> {
    match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(path),
    }
}

/// The time of the watchdog, if it is meant for this process.
fn watchdog(microseconds: Option<String>, pid: Option<String>) -> Option<Duration> {
    let own = process::id().to_string();
    if pid.is_some_and(|pid| pid != own) {
        return None;
    }
    let microseconds: u64 = microseconds?.parse().ok()?;
    (microseconds != 0).then_some(Duration::from_micros(microseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_abstract_names_are_addresses() {
        let path = address(&"/run/systemd/notify".into()).unwrap();
        assert_eq!(path.as_pathname().unwrap(), "/run/systemd/notify");
        let name = address(&"@notify".into()).unwrap();
        assert_eq!(name.as_abstract_name(), Some(&b"notify"[..]));
        assert!(address(&"/".repeat(200).into()).is_err());
    }

    #[test]
    fn the_watchdog_is_that_of_this_process() {
        let time = || Some("2000000".to_owned());
        let own = process::id().to_string();
        assert_eq!(watchdog(time(), None), Some(Duration::from_secs(2)));
        assert_eq!(watchdog(time(), Some(own)), Some(Duration::from_secs(2)));
        assert_eq!(watchdog(time(), Some("1".into())), None);
        assert_eq!(watchdog(None, None), None);
        assert_eq!(watchdog(Some("0".into()), None), None);
        assert_eq!(watchdog(Some("soon".into()), None), None);
    }

    #[test]
    fn a_manager_gets_the_message() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        let manager = ServiceManager {
            socket: connect(&path.into()).unwrap(),
            watchdog: None,
        };
        manager.tell("READY=1\nSTATUS=running");
        let mut buffer = [0; 64];
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1\nSTATUS=running");
        drop(receiver);
        manager.tell("STOPPING=1");
    }
}
