//! The error type of the test-bed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What can go wrong in a test run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("cannot {action}")]
    Io {
        /// What was tried, with the path.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A helper program could not be started.
    #[error("cannot start {program}")]
    Spawn {
        /// The program's name.
        program: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A helper program reported a failure.
    #[error("{command} failed ({status})\n{output}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it printed.
        output: String,
    },
    /// The machine does not run a supported Debian.
    #[error(
        "this machine runs {system}; the test-bed needs Debian 12 or 13, as a machine or as a container (`podman run --rm --interactive --tty --volume .:/vmsrs docker.io/library/debian:13`, with Rust in it)"
    )]
    NotDebian {
        /// Its name.
        system: String,
    },
    /// Tools are missing and this user may not install them.
    #[error("these tools are missing: {missing}; install them with: {remedy}")]
    MissingTools {
        /// The programs or libraries that were looked for.
        missing: String,
        /// The command line that installs them.
        remedy: String,
    },
    /// The machine's package sources name no Debian archive.
    #[error(
        "apt's sources name no Debian archive; add one, or set VMSRS_DEBIAN_MIRROR to the address of a Debian mirror"
    )]
    NoMirror,
    /// A package is not in the Debian archive.
    #[error(
        "no version {series}* of package {package} in the Debian archive; check the mirror in apt's sources"
    )]
    NoPackage {
        /// The package's name.
        package: String,
        /// How its version must start.
        series: String,
    },
    /// A file that belongs to a fetched package is not there.
    #[error("{what} is not in {place}; run `bed fetch --update`")]
    NotFetched {
        /// The file that was looked for.
        what: String,
        /// The folder it was looked for in.
        place: String,
    },
    /// A kernel image is not as expected.
    #[error("cannot unpack the kernel {path}")]
    Vmlinux {
        /// The image's path.
        path: String,
        /// What is wrong with it.
        source: crate::vmlinux::Error,
    },
    /// The debug kernel's source does not accept its configuration.
    #[error(
        "the kernel's configuration dropped {lost}; name what they depend on in debug-kernel.config"
    )]
    KernelConfig {
        /// The dropped lines, separated by commas.
        lost: String,
    },
    /// A kernel module cannot be resolved.
    #[error("cannot resolve the kernel modules of {release}")]
    Modules {
        /// The kernel's release.
        release: String,
        /// Which module, and why.
        source: crate::modules::Error,
    },
    /// A program's shared libraries cannot be found.
    #[error(
        "cannot pack {path}: shared library {library} was not found; add its folder with `library_dir`"
    )]
    NoLibrary {
        /// The program.
        path: String,
        /// The library that `ldd` could not find.
        library: String,
    },
    /// A name of a job's file is not a plain relative path.
    #[error("{name:?} is not a plain relative path; job files lie below the job's own folder")]
    JobFileName {
        /// The name.
        name: String,
    },
    /// The checker found something in the driver's source.
    #[error("sparse reports about the driver for {release}:\n{messages}")]
    Sparse {
        /// The kernel's release.
        release: String,
        /// The messages, one per line.
        messages: String,
    },
    /// The machine's own KVM was asked for and cannot run a stock guest.
    #[error(
        "this machine's KVM cannot run a stock guest ({reason}); unset VMSRS_BED or set it to `nested`"
    )]
    NoDirect {
        /// What is missing.
        reason: String,
    },
    /// `VMSRS_BED` is neither `nested` nor `direct`.
    #[error("VMSRS_BED is {value:?}; it may be `nested` or `direct`")]
    BadMode {
        /// The value.
        value: String,
    },
    /// A file that cargo builds next to the program that runs is missing.
    #[error("{path:?} is missing; build it first: make build")]
    NotBuilt {
        /// Where it should be.
        path: PathBuf,
    },
    /// `VMSRS_KERNEL` names no kernel.
    #[error("VMSRS_KERNEL is {value:?}; it may be `6.1`, `6.12`, `7` or `debug`")]
    BadFlavour {
        /// The value.
        value: String,
    },
    /// The job did not end in time; it has been killed.
    #[error("killed after {} s; the last console lines were:\n{console}{positions}", after.as_secs())]
    Timeout {
        /// The job's time limit.
        after: Duration,
        /// The end of the console's output.
        console: String,
        /// Where the CPUs of the nested host were, after a line feed; or empty.
        positions: String,
    },
    /// `vmsrs run` ended too early, or with an error.
    #[error("vmsrs run ended ({status}) {before}")]
    GuestEnded {
        /// How it ended.
        status: std::process::ExitStatus,
        /// When it ended, as in "before it was stopped".
        before: String,
    },
    /// The event that was waited for in a guest did not come.
    #[error("{what} did not come within {} s", after.as_secs())]
    GuestLate {
        /// What was waited for.
        what: String,
        /// The limit.
        after: Duration,
    },
    /// The `vmsrs` command did not print the expected JSON.
    #[error("vmsrs {command} did not print the expected JSON")]
    Json {
        /// The arguments.
        command: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The KVM host went down before the job reported its exit code.
    #[error(
        "the KVM host ended ({status}) before the job did; the last console lines were:\n{console}"
    )]
    Died {
        /// How QEMU or the job's shell ended.
        status: std::process::ExitStatus,
        /// The end of the console's output.
        console: String,
    },
}

/// The result of the test-bed's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Attaches what was tried to an I/O error.
pub(crate) trait IoContext<T> {
    /// Names the action and the path it was about, as in "read /etc/hosts".
    fn context(self, action: &str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, action: &str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io {
            action: format!("{action} {}", path.display()),
            source,
        })
    }
}
