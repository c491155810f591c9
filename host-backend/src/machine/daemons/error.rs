//! What can be wrong with devices that have daemons.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::program::Program;
use crate::devices::vhost_user::VhostUserError;

/// Why a device with a daemon cannot be had.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// What is to be served cannot be used.
    #[error("cannot use {} for {}: check the path and its permissions", .path.display(), .option)]
    Open {
        /// `--disk` or `--share`.
        option: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is not {what}: give one to {option}", .path.display())]
    Kind {
        /// `--disk` or `--share`.
        option: &'static str,
        /// The path.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
    },
    /// The program is not installed.
    #[error("{} needs {}, which is not installed: {}", .0.option, .0.name, .0.package)]
    NotInstalled(Program),
    /// The system does not start it.
    #[error("cannot start {name}")]
    Start {
        /// The program.
        name: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// It does not serve the disk or the folder.
    #[error("the daemon of {option} does not serve it: {words}")]
    Refused {
        /// The option.
        option: String,
        /// What it said, or what is wrong with what it did.
        words: String,
    },
    /// Another VM, or a program of QEMU's, has the image.
    #[error(
        "the image of {0} is in use: end the VM or program that has it, or give `readonly` to all of them"
    )]
    Busy(String),
    /// Nobody listens at the socket of `--vhost-user`.
    #[error("no daemon can be reached at {}: start it first, and check the path and its permissions", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The daemon of the operator does not do what it should.
    #[error("the daemon at {} cannot be used: is it one of that type, and does it serve nobody else?", .path.display())]
    Operators {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        source: VhostUserError,
    },
    /// This process has no memory or descriptor left.
    #[error("no memory for a device with a daemon")]
    Host(#[source] VhostUserError),
}
