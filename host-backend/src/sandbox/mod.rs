//! What the threads of this process may still do once they work for a guest: the system calls that their
//! work needs (seccomp), and the files (landlock).
//!
//! A guest that takes a thread over, by a defect of a device, then has the rights of that thread's role and
//! no more. Nothing is restricted before [`enable`]; then every thread [confines](confine) itself as the first thing
//! it does. Threads that a confined one starts inherit its restrictions.

mod files;
mod filter;
mod violation;

use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;

use thiserror::Error;

pub(crate) use files::kernel_support as landlock_version;

/// What a thread works for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Makes and starts the VM of each boot.
    Main,
    /// Runs a virtual CPU. It serves the registers of devices, which starts and ends their threads.
    Vcpu,
    /// Serves the queues of a device.
    Device,
    /// Serves the control socket.
    Control,
    /// Cleanses and checks the vault.
    Background,
    /// Writes console or messages, reads the console, or waits for signals.
    Stream,
    /// Talks to the service manager.
    Notifier,
    /// Reads the files of programs that an incident names.
    Symbolizer,
    /// Passes on what a daemon says, and waits for its end.
    Keeper,
}

/// Why a thread cannot be confined.
#[derive(Debug, Error)]
pub(crate) enum SandboxError {
    /// The kernel has no seccomp filters.
    #[error("the kernel refuses a filter of system calls")]
    Seccomp(#[source] seccompiler::Error),
    /// The kernel has no landlock, or refuses a rule.
    #[error("the kernel refuses rules for files")]
    Landlock(#[source] landlock::RulesetError),
    /// The handler of violations cannot be installed.
    #[error("SIGSYS cannot be handled")]
    Handler(#[source] io::Error),
}

/// What threads use beside the files that every program reads.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files {
    /// The control socket, which is removed at the end.
    pub(crate) socket: Option<PathBuf>,
    /// Folders that the symbolizer reads.
    pub(crate) symbols: Vec<PathBuf>,
    /// Whether daemons serve devices of the VM.
    pub(crate) has_daemons: bool,
}

static FILES: OnceLock<Files> = OnceLock::new();

/// Lets every thread that calls [`confine`] from now on lose what it does not need.
///
/// # Errors
///
/// Fails when violations could not be reported.
pub(crate) fn enable(files: Files) -> Result<(), SandboxError> {
    violation::report().map_err(SandboxError::Handler)?;
    FILES.get_or_init(|| files);
    Ok(())
}

/// Confines the calling thread to `role`, and all that it starts from now on. Does nothing before [`enable`]. What
/// the kernel does not support is left out, with a warning for the main thread.
pub(crate) fn confine(role: Role) {
    let Some(files) = FILES.get() else { return };
    // Those are started by the main thread or a vCPU, whose rules they have.
    if !matches!(role, Role::Vcpu | Role::Device) {
        warn(
            role,
            files::restrict(role, files).map_err(SandboxError::Landlock),
        );
    }
    let filtered = filter::restrict(role, files.has_daemons);
    warn(role, filtered.map_err(SandboxError::Seccomp));
}

fn warn(role: Role, result: Result<(), SandboxError>) {
    let Err(error) = result else { return };
    let source = std::error::Error::source(&error).map(ToString::to_string);
    let source = source.unwrap_or_default();
    if role == Role::Main {
        log::warn!(
            "the sandbox is incomplete: {error} ({source}); `vmsrs doctor` says what is supported"
        );
    }
}

#[cfg(test)]
mod tests;
