//! Disks and shared folders: the daemons that serve them, and the devices in front of these.

mod error;
mod options;
mod process;
mod program;
mod sharing;
mod storage;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use self::process::Daemon;
use self::program::{Program, SHARING, STORAGE, find};
use self::sharing::{check_folder, sharing_arguments};
use self::storage::{check_image, storage_arguments};
use crate::devices::vhost_user::{DaemonStatus, Kind, VhostUser, VhostUserError};

pub use self::error::DaemonError;
pub use self::options::{DaemonOptionError, DiskOption, ShareOption, VhostUserOption};

/// The daemons of a VM. Those that this program has started end when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Daemons {
    processes: Vec<Daemon>,
    /// Images of disks, which are locked.
    images: Vec<File>,
    /// What is known of each of them.
    pub(crate) statuses: Vec<Arc<DaemonStatus>>,
}

impl Daemons {
    /// Starts what serves a disk, and makes the device in front of it.
    pub(crate) fn disk(&mut self, disk: &DiskOption) -> Result<VhostUser, DaemonError> {
        let (image, driver) = check_image(disk)?;
        let arguments = |socket| storage_arguments(disk, driver, socket);
        let device = self.start(STORAGE, &disk.text, Kind::Block, arguments)?;
        self.images.push(image);
        Ok(device)
    }

    /// Starts what serves a folder, and makes the device in front of it.
    pub(crate) fn share(&mut self, share: &ShareOption) -> Result<VhostUser, DaemonError> {
        check_folder(share)?;
        let kind = Kind::FileSystem {
            tag: share.tag.clone(),
        };
        let arguments = |socket| sharing_arguments(&share.folder, socket);
        self.start(SHARING, &share.text, kind, arguments)
    }

    /// Makes the device in front of a daemon that the operator runs.
    pub(crate) fn operators(&mut self, option: &VhostUserOption) -> Result<VhostUser, DaemonError> {
        let path = || option.socket.clone();
        let socket = UnixStream::connect(&option.socket).map_err(|source| {
            let path = path();
            DaemonError::Connect { path, source }
        })?;
        let text = format!("--vhost-user {}", option.text);
        let status = Arc::new(DaemonStatus::new(text, None, option.kind.loss()));
        let device = VhostUser::new(option.kind.clone(), socket, status.clone());
        let device = device.map_err(|source| {
            let path = path();
            DaemonError::Operators { path, source }
        })?;
        self.statuses.push(status);
        Ok(device)
    }

    fn start(
        &mut self,
        program: Program,
        text: &str,
        kind: Kind,
        arguments: impl FnOnce(i32) -> Vec<OsString>,
    ) -> Result<VhostUser, DaemonError> {
        let path = find(program.name).ok_or(DaemonError::NotInstalled(program))?;
        let failed = |source| DaemonError::Start {
            name: program.name,
            source,
        };
        let (listener, socket) = process::connect().map_err(failed)?;
        let arguments = arguments(listener.as_raw_fd());
        let (daemon, pid) = Daemon::start(&path, arguments, &listener).map_err(failed)?;
        // The daemon alone has it: if it ends, the connection does.
        drop(listener);
        let option = format!("{} {text}", program.option);
        let status = Arc::new(DaemonStatus::new(option.clone(), Some(pid), kind.loss()));
        match VhostUser::new(kind, socket, status.clone()) {
            Ok(device) => {
                daemon.supervise(status.clone());
                self.processes.push(daemon);
                self.statuses.push(status);
                Ok(device)
            }
            Err(VhostUserError::Link(error)) => {
                let words = daemon.last_words();
                let words = match words.is_empty() {
                    true => error.to_string(),
                    false => words,
                };
                // QEMU's words for an image that another process has locked.
                Err(
                    match words.contains("Failed to get") && words.contains("lock") {
                        true => DaemonError::Busy(option),
                        false => DaemonError::Refused { option, words },
                    },
                )
            }
            Err(error) => Err(DaemonError::Host(error)),
        }
    }
}
