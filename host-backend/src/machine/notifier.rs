//! Tells the service manager what the VM is doing, and that its threads are alive.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::operator::RunningVm;
use crate::engine::Engine;
use crate::sandbox::{self, Role};
use crate::service::ServiceManager;
use crate::vitals;

/// Longest time between two looks at the machine.
const PAUSE: Duration = Duration::from_secs(1);

/// Looks within the time of the watchdog: threads are asked several times before it ends the process.
const LOOKS_PER_WATCHDOG: u32 = 4;

/// The thread that tells it; dropping it says that the VM ends.
pub(crate) struct Notifier {
    quit: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Notifier {
    /// Starts to tell `manager` about `vm`.
    ///
    /// # Errors
    ///
    /// Fails when the system has no thread left.
    pub(crate) fn start(manager: ServiceManager, vm: Arc<RunningVm>) -> io::Result<Self> {
        let (quit, ends) = mpsc::channel();
        let pause = manager
            .watchdog()
            .map_or(PAUSE, |time| PAUSE.min(time / LOOKS_PER_WATCHDOG));
        let thread = thread::Builder::new()
            .name("notifier".into())
            .spawn(move || {
                sandbox::confine(Role::Notifier);
                let mut told = Told::default();
                loop {
                    // Waits for the engine: if that is never free, nothing is told any more.
                    let look = Look {
                        has_driver: vm.recovery.has_driver(),
                        restarts: vm.restarts().count,
                        work: vm.recovery.read(work),
                        silent: vitals::silent(),
                    };
                    vitals::ask();
                    let message = told.message(look, manager.watchdog().is_some());
                    if !message.is_empty() {
                        manager.tell(&message);
                    }
                    if ends.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                        break;
                    }
                }
                manager.tell("STOPPING=1\nSTATUS=the VM ends");
            })?;
        Ok(Self {
            quit: Some(quit),
            thread: Some(thread),
        })
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        drop(self.quit.take());
        if let Some(thread) = self.thread.take() {
            // A panic has been reported.
            let _ = thread.join();
        }
    }
}

/// What is seen of the machine at a time.
struct Look {
    has_driver: bool,
    restarts: u64,
    work: Work,
    /// Threads that have not answered since the last look.
    silent: Vec<String>,
}

/// What the engine has to do with.
#[derive(Clone, Copy, Default)]
struct Work {
    domains: u32,
    pages: u64,
    pages_max: u64,
    incidents: u64,
}

fn work(engine: &Engine) -> Work {
    let store = engine.store();
    let (pages, pages_max) = store.pages();
    Work {
        domains: store.domains(),
        pages: pages.into(),
        pages_max: pages_max.into(),
        incidents: engine
            .incidents()
            .counts()
            .iter()
            .map(|(.., count)| count)
            .sum(),
    }
}

/// What has been told so far.
#[derive(Default)]
struct Told {
    is_ready: bool,
    is_silence_logged: bool,
    status: String,
}

impl Told {
    /// The message that says what is new; empty if nothing is.
    fn message(&mut self, look: Look, has_watchdog: bool) -> String {
        let mut lines = Vec::new();
        if look.has_driver && !self.is_ready {
            self.is_ready = true;
            lines.push("READY=1".to_owned());
        }
        let status = status(&look);
        if status != self.status {
            lines.push(format!("STATUS={status}"));
            self.status = status;
        }
        match look.silent.is_empty() {
            true if has_watchdog => lines.push("WATCHDOG=1".to_owned()),
            true => {}
            // One missed look may mean a busy host: the log is for those that know the watchdog's time.
            false if !self.is_silence_logged => {
                self.is_silence_logged = true;
                log::warn!("no answer from {}", look.silent.join(", "));
            }
            false => {}
        }
        if look.silent.is_empty() {
            self.is_silence_logged = false;
        }
        lines.join("\n")
    }
}

fn status(look: &Look) -> String {
    let Work {
        domains,
        pages,
        pages_max,
        incidents,
    } = look.work;
    let boot = match (look.has_driver, look.restarts) {
        (true, _) => "running",
        (false, 0) => "waiting for the guest's driver",
        (false, _) => "waiting for the driver of the guest that was started again",
    };
    let mut text = format!(
        "{boot}; domains: {domains}, pages: {pages} of {pages_max}, incidents: {incidents}, restarts: {}",
        look.restarts
    );
    if !look.silent.is_empty() {
        text += &format!("; no answer from {}", look.silent.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(has_driver: bool, silent: &[&str]) -> Look {
        Look {
            has_driver,
            restarts: 0,
            work: Work::default(),
            silent: silent.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    #[test]
    fn ready_is_said_once_and_a_status_when_it_changes() {
        let mut told = Told::default();
        let first = told.message(look(false, &[]), false);
        assert!(first.starts_with("STATUS=waiting for the guest's driver;"));
        assert_eq!(told.message(look(false, &[]), false), "");
        let ready = told.message(look(true, &[]), false);
        assert!(ready.starts_with("READY=1\nSTATUS=running; domains: 0,"));
        assert_eq!(told.message(look(true, &[]), false), "");
        let again = Look {
            restarts: 1,
            ..look(false, &[])
        };
        let again = told.message(again, false);
        assert!(again.contains("started again") && again.contains("restarts: 1"));
        assert!(!told.message(look(true, &[]), false).contains("READY"));
    }

    #[test]
    fn the_watchdog_is_told_only_when_every_thread_has_answered() {
        let mut told = Told::default();
        assert!(
            told.message(look(true, &[]), true)
                .ends_with("\nWATCHDOG=1")
        );
        assert_eq!(told.message(look(true, &[]), true), "WATCHDOG=1");
        let silent = told.message(look(true, &["vCPU 0"]), true);
        assert!(silent.ends_with("no answer from vCPU 0"), "{silent}");
        assert_eq!(told.message(look(true, &["vCPU 0"]), true), "");
        assert!(told.message(look(true, &[]), true).ends_with("WATCHDOG=1"));
    }
}
