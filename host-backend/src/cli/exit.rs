//! Exit codes of the `vmsrs` command, for scripts.

use std::fmt;
use std::process::ExitCode;

/// Makes [`Exit`] and [`HELP`] of one list.
macro_rules! exits {
    ($($(#[$doc:meta])* $name:ident = $code:literal: $help:literal,)*) => {
        /// How the command ended. The numbers are part of the interface and never change their meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Exit {
            $($(#[$doc])* $name = $code,)*
        }

        /// The list of exit codes in the help text.
        pub(super) const HELP: &str = concat!("Exit codes:", $("\n  ", $code, "  ", $help),*);
    };
}

exits! {
    /// Success; for `run`: the guest powered off, or was stopped.
    Ok = 0: "success; for `run`: the guest powered off or was stopped",
    /// Unexpected error, such as standard output on a full disk.
    Failure = 1: "unexpected error, such as standard output that cannot be written",
    /// Invalid command line, or it names a file that is missing or of the wrong kind.
    Usage = 2: "invalid command line, or a file that is missing or of the wrong kind",
    /// Not supported by this machine: no KVM, no permission, too little memory.
    Machine = 3: "this machine does not support it (see `vmsrs doctor`)",
    /// No VM can be reached at the control socket.
    Unreachable = 4: "no VM reachable at the control socket",
    /// The guest crashed (a vCPU could not continue) and was not restarted.
    GuestDied = 5: "the guest crashed and was not restarted",
    /// The guest reset itself (it rebooted, or its kernel panicked) and was not restarted.
    GuestReset = 6: "the guest reset itself (a reboot or a kernel panic) and was not restarted",
    /// The control socket, the tap interface or the image of a disk is in use.
    Busy = 7: "the control socket, the tap interface or the image of a disk is in use",
    /// There is no incident with that number, or no app or domain of that name.
    NotFound = 8: "no incident with that number, or no app or domain with that name",
    /// The content of sealed pages is lost.
    Damaged = 9: "the content of sealed pages is lost",
    /// The guest did not turn itself off in time, and runs on.
    TimedOut = 10: "the guest did not turn itself off in time",
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error at the edge of the program: what to say, and with which code to exit.
#[derive(Debug)]
pub struct Failure {
    /// The code.
    pub exit: Exit,
    /// The error with its causes.
    pub error: anyhow::Error,
}

impl Failure {
    /// An error that ends the program with `exit`.
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit,
            error: error.into(),
        }
    }
}

impl fmt::Display for Failure {
    /// One line: the error, and its causes unless they say the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.error.to_string();
        write!(f, "{said}")?;
        for cause in self.error.chain().skip(1) {
            let text = cause.to_string();
            if !said.contains(&text) {
                write!(f, " ({text})")?;
                said = text;
            }
        }
        Ok(())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Exit::Failure, error)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::new(Exit::Failure, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_with_its_cause() {
        let cause = std::io::Error::from_raw_os_error(libc::ENOENT);
        let error = anyhow::Error::new(cause).context("cannot read it: check the path");
        assert_eq!(
            Failure::new(Exit::Usage, error).to_string(),
            "cannot read it: check the path (No such file or directory (os error 2))"
        );
    }
}
