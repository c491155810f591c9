//! Shared folders: what they are, and how they are served.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use super::error::DaemonError;
use super::options::ShareOption;
use super::program::SHARING;

/// Looks at a folder.
pub(super) fn check_folder(share: &ShareOption) -> Result<(), DaemonError> {
    let folder = &share.folder;
    let option = SHARING.option;
    let metadata = fs::metadata(folder).map_err(|source| DaemonError::Open {
        option,
        path: folder.clone(),
        source,
    })?;
    if !metadata.is_dir() {
        return Err(DaemonError::Kind {
            option,
            path: folder.clone(),
            what: "a folder",
        });
    }
    Ok(())
}

/// The arguments of `virtiofsd`. Namespaces of its own are only root's.
pub(super) fn sharing_arguments(folder: &Path, socket: i32) -> Vec<OsString> {
    // SAFETY: the call has no arguments and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    let sandbox = if is_root { "namespace" } else { "none" };
    vec![
        format!("--fd={socket}").into(),
        "--shared-dir".into(),
        folder.into(),
        format!("--sandbox={sandbox}").into(),
    ]
}
