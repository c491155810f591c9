//! Signals that end this process: they end the VM first, so that its threads, its sockets and the
//! terminal are left in order.

use std::io;
use std::thread;

use vmm_sys_util::signal::create_sigset;

use super::exit::{ExitReason, StopHandle};
use super::kick::kick_signal;
use crate::sandbox::{self, Role};

/// The standard signals that anybody may send, or a timer or limit of the process, and that end it.
const SIGNALS: [(libc::c_int, &str); 13] = [
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGQUIT, "SIGQUIT"),
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGSTKFLT, "SIGSTKFLT"),
    (libc::SIGXCPU, "SIGXCPU"),
    (libc::SIGVTALRM, "SIGVTALRM"),
    (libc::SIGPROF, "SIGPROF"),
    (libc::SIGIO, "SIGIO"),
    (libc::SIGPWR, "SIGPWR"),
];

/// Termination signals, held back from this thread and from every thread it starts later.
///
/// Make it before the first thread: one that was started before keeps the default, and would let a
/// signal kill the process.
#[derive(Debug)]
pub struct Termination {
    signals: libc::sigset_t,
}

impl Termination {
    /// Holds back every signal whose default is to end the process, but those that report an error
    /// of the program itself (SIGSEGV, SIGABRT and their like), and the one that kicks vCPUs.
    ///
    /// # Errors
    ///
    /// Fails when the system refuses it.
    pub fn block() -> io::Result<Self> {
        let numbers: Vec<_> = SIGNALS
            .iter()
            .map(|&(signal, _)| signal)
            .chain(kick_signal() + 1..=libc::SIGRTMAX())
            .collect();
        let signals = create_sigset(&numbers).map_err(io::Error::from)?;
        // SAFETY: the set is valid, and no old set is asked for.
        let error =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        Ok(Self { signals })
    }

    /// Ends the VM of `stop` when one of the signals comes. A second one kills the process, in
    /// case the VM does not end.
    ///
    /// # Errors
    ///
    /// Fails when the waiting thread cannot be started.
    pub fn stops(self, stop: StopHandle) -> io::Result<()> {
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                sandbox::confine(Role::Stream);
                let signal = self.wait();
                let known = SIGNALS.iter().find(|&&(known, _)| known == signal);
                let name = known.map_or("a real-time signal", |&(_, name)| name);
                stop.stop(ExitReason::Stopped(name));
                // From here on the default applies to this thread, which kills the process.
                // SAFETY: the set is valid, and no old set is asked for.
                unsafe {
                    libc::pthread_sigmask(libc::SIG_UNBLOCK, &self.signals, std::ptr::null_mut());
                }
                loop {
                    thread::park();
                }
            })?;
        Ok(())
    }

    fn wait(&self) -> libc::c_int {
        let mut signal = 0;
        loop {
            // SAFETY: both pointers are valid for the call.
            if unsafe { libc::sigwait(&self.signals, &mut signal) } == 0 {
                return signal;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_that_would_end_the_process_is_held_back() {
        // In a thread of its own, whose signal mask goes with it.
        let thread = thread::spawn(|| {
            let _termination = Termination::block().unwrap();
            let pending = |signal| {
                // SAFETY: all zeros is a valid set, which the calls read and fill.
                unsafe {
                    let mut set = std::mem::zeroed();
                    libc::sigpending(&mut set);
                    libc::sigismember(&set, signal) == 1
                }
            };
            for signal in [
                libc::SIGHUP,
                libc::SIGINT,
                libc::SIGQUIT,
                libc::SIGUSR1,
                libc::SIGUSR2,
                libc::SIGALRM,
                libc::SIGTERM,
                libc::SIGSTKFLT,
                libc::SIGXCPU,
                libc::SIGVTALRM,
                libc::SIGPROF,
                libc::SIGIO,
                libc::SIGPWR,
                libc::SIGRTMIN() + 1,
                libc::SIGRTMAX(),
            ] {
                // SAFETY: the call has no memory effects. A signal that is not held back ends this
                // test's process.
                unsafe { libc::pthread_kill(libc::pthread_self(), signal) };
                assert!(pending(signal), "signal {signal}");
            }
        });
        thread.join().unwrap();
    }
}
