//! Signals that end this process: they end the VM first, so that its threads, its sockets and the
//! terminal are left in order.

use std::io;
use std::thread;

use vmm_sys_util::signal::create_sigset;

use super::exit::{ExitReason, StopHandle};

/// Termination signals, held back from this thread and from every thread it starts later.
///
/// Make this the first thing in `main`: a thread that was started before keeps the default, and
/// would let a signal kill the process.
#[derive(Debug)]
pub struct Termination {
    signals: libc::sigset_t,
}

impl Termination {
    /// Holds back SIGINT, SIGTERM and SIGHUP.
    ///
    /// # Errors
    ///
    /// Fails when the system refuses it.
    pub fn block() -> io::Result<Self> {
        let signals =
            create_sigset(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP]).map_err(io::Error::from)?;
        // SAFETY: the set is valid, and no old set is asked for.
        let error =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        Ok(Self { signals })
    }

    /// Ends the VM behind `stop` when one of the signals comes. A second one kills the process, in
    /// case the VM does not end.
    ///
    /// # Errors
    ///
    /// Fails when the waiting thread cannot be started.
    pub fn stops(self, stop: StopHandle) -> io::Result<()> {
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                let signal = self.wait();
                stop.stop(ExitReason::Stopped(match signal {
                    libc::SIGINT => "SIGINT",
                    libc::SIGTERM => "SIGTERM",
                    _ => "SIGHUP",
                }));
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
