//! Several VMs at a time: those of this user that run, or those that are named.

use std::io;
use std::path::{Path, PathBuf};

use super::{Exit, Failure};
use crate::control::{Client, ClientError, Request, Response, VmStatus, default_path, sockets};

/// Which VMs.
#[derive(Debug, clap::Args)]
pub(super) struct Selection {
    /// Name of a VM; may be repeated [default: all VMs of this user that run]
    #[arg(long)]
    name: Vec<String>,
    /// Path of a VM's control socket; may be repeated
    #[arg(long, value_name = "PATH")]
    socket: Vec<PathBuf>,
}

/// A VM, and its state if it answers.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) status: Option<Box<VmStatus>>,
}

impl Selection {
    /// Asks each for its state.
    pub(super) fn ask(&self) -> Result<Vec<Vm>, Failure> {
        match self.name.is_empty() && self.socket.is_empty() {
            true => all_running(),
            false => self.named(),
        }
    }

    /// The same; those that were named and are not reachable have no state.
    pub(super) fn look(&self) -> Result<Vec<Vm>, Failure> {
        if self.name.is_empty() && self.socket.is_empty() {
            return all_running();
        }
        let vms = self.paths()?.into_iter().map(|path| {
            let status = status(&path).ok();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let name = status.as_ref().map(|status| status.name.clone());
            Vm {
                name: name.unwrap_or_else(|| stem.into_owned()),
                path,
                status,
            }
        });
        Ok(vms.collect())
    }

    /// The sockets of those that are named.
    fn paths(&self) -> Result<Vec<PathBuf>, Failure> {
        let named = self.name.iter().map(|name| default_path(name));
        let mut paths = named
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Failure::new(Exit::Usage, error))?;
        paths.extend_from_slice(&self.socket);
        Ok(paths)
    }

    fn named(&self) -> Result<Vec<Vm>, Failure> {
        let vms = self.paths()?.into_iter().map(|path| {
            let status = status(&path)?;
            Ok(Vm {
                name: status.name.clone(),
                path,
                status: Some(status),
            })
        });
        vms.collect()
    }
}

fn all_running() -> Result<Vec<Vm>, Failure> {
    let sockets = sockets().map_err(|error| Failure::new(Exit::Usage, error))?;
    let vms = sockets.into_iter().filter_map(|(name, path)| {
        let status = match status(&path) {
            Ok(status) => Some(status),
            // The VM has ended, perhaps just now.
            Err(ClientError::Connect { .. }) => return None,
            Err(_) => None,
        };
        Some(Vm { name, path, status })
    });
    Ok(vms.collect())
}

fn status(path: &Path) -> Result<Box<VmStatus>, ClientError> {
    match Client::connect(path)?.ask(Request::Status {})? {
        Response::Status(status) => Ok(status),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
    }
}
