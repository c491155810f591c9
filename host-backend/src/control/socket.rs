//! Where a VM's socket lies, and binding it so that no other user can connect and no stale socket is
//! in the way.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::ServerError;

/// Folder of the sockets, under the folder for run-time files.
const FOLDER: &str = "vmsrs";

/// Connections that wait to be accepted.
const BACKLOG: libc::c_int = 16;

/// Time in which a listener that has room takes a connection: the kernel does that.
const PROBE: Duration = Duration::from_millis(1);

/// What to do when a socket's folder does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folder {
    /// Make it, for this user alone, and remove it with its last socket.
    MayBeMade,
    /// Fail: the path may be mistyped.
    MustExist,
}

/// Why the socket has no default path.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PathError {
    /// The user has no folder for run-time files.
    #[error("XDG_RUNTIME_DIR is not set: give the control socket's path with --socket")]
    NoRuntimeFolder,
    /// The name cannot be part of a path.
    #[error("`{0}` is not a valid VM name: give 1 to 64 letters, digits, `-`, `_` or `.`")]
    Name(String),
}

/// The place of the control socket of the VM `name`: `/run/vmsrs/NAME.sock` for root,
/// `$XDG_RUNTIME_DIR/vmsrs/NAME.sock` for other users.
///
/// # Errors
///
/// Fails when the name is not possible, or the variable is not set.
pub fn default_path(name: &str) -> Result<PathBuf, PathError> {
    path_in(runtime_folder(), name)
}

/// Name and socket of each VM of this user that runs or has left its socket behind, of those whose socket is at its
/// [`default_path`], by name.
///
/// # Errors
///
/// Fails when the user has no folder for run-time files.
pub fn sockets() -> Result<Vec<(String, PathBuf)>, PathError> {
    let folder = folder_in(runtime_folder())?;
    Ok(sockets_in(&folder))
}

fn sockets_in(folder: &Path) -> Vec<(String, PathBuf)> {
    // If the folder is missing, no VM runs.
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let name = name.strip_suffix(".sock")?.to_owned();
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        is_socket.then(|| (name, entry.path()))
    });
    let mut sockets: Vec<_> = named.collect();
    sockets.sort();
    sockets
}

fn runtime_folder() -> Option<PathBuf> {
    // SAFETY: the call has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    if root {
        Some(PathBuf::from("/run"))
    } else {
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)
    }
}

/// The folder of the sockets.
fn folder_in(folder: Option<PathBuf>) -> Result<PathBuf, PathError> {
    let folder = folder.filter(|folder| folder.is_absolute());
    Ok(folder.ok_or(PathError::NoRuntimeFolder)?.join(FOLDER))
}

fn path_in(folder: Option<PathBuf>, name: &str) -> Result<PathBuf, PathError> {
    let possible = (1..=64).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !possible {
        return Err(PathError::Name(name.to_owned()));
    }
    Ok(folder_in(folder)?.join(format!("{name}.sock")))
}

/// A listening socket in the file system; dropping it removes what it made there.
#[derive(Debug)]
pub(super) struct BoundSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our socket: another's under the same name stays.
    identity: Option<(u64, u64)>,
    made_folder: bool,
}

impl BoundSocket {
    /// Listens at `path`, for this user alone. The socket of a VM that is gone is replaced.
    pub(super) fn bind(path: &Path, folder: Folder) -> Result<Self, ServerError> {
        let made_folder = match folder {
            Folder::MayBeMade => make_folder(path)?,
            Folder::MustExist => false,
        };
        let bound = bind_private(path).or_else(|error| {
            if error.raw_os_error() == Some(libc::EADDRINUSE) {
                remove_stale(path)?;
                bind_private(path).map_err(|error| bind_error(path, error))
            } else {
                Err(bind_error(path, error))
            }
        });
        let listener = match bound {
            Ok(listener) => listener,
            Err(error) => {
                if made_folder {
                    remove_folder(path);
                }
                return Err(error);
            }
        };
        Ok(Self {
            listener,
            path: path.to_owned(),
            identity: identity(path),
            made_folder,
        })
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        if identity(&self.path) == self.identity
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::debug!("{} stays behind: {error}", self.path.display());
        }
        if self.made_folder {
            remove_folder(&self.path);
        }
    }
}

fn bind_error(path: &Path, source: io::Error) -> ServerError {
    ServerError::Bind {
        path: path.to_owned(),
        source,
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Makes the socket's folder, for this user alone, if it does not exist; true if it did not.
fn make_folder(path: &Path) -> Result<bool, ServerError> {
    let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    else {
        return Ok(false);
    };
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(bind_error(path, source)),
    }
}

/// Removes the socket's folder unless another VM's socket is in it.
fn remove_folder(path: &Path) {
    if let Some(folder) = path.parent() {
        // Not empty: another VM uses it.
        let _ = fs::remove_dir(folder);
    }
}

/// Removes a socket without a listener.
fn remove_stale(path: &Path) -> Result<(), ServerError> {
    let metadata = fs::symlink_metadata(path).map_err(|error| bind_error(path, error))?;
    if !metadata.file_type().is_socket() {
        return Err(ServerError::NoSocket(path.to_owned()));
    }
    // A listener whose clients all wait is one.
    match connect(path, PROBE) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            log::info!("replacing the stale socket {}", path.display());
            fs::remove_file(path).map_err(|error| bind_error(path, error))
        }
        _ => Err(ServerError::Busy(path.to_owned())),
    }
}

/// Listens at `path` with a socket of mode 0600 from its first moment on.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let (socket, address) = unconnected(path)?;
    // Linux gives the file the mode of the socket (unix(7) leaves it open, `unix_bind_bsd()` does
    // it), so others can never connect.
    // SAFETY: the call has no memory effects.
    check(unsafe { libc::fchmod(socket.as_raw_fd(), 0o600) })?;
    // SAFETY: the address is valid for its length.
    check(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as _,
        )
    })?;
    // SAFETY: the call has no memory effects.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    let listener = UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects to the socket at `path`. Fails with [`io::ErrorKind::WouldBlock`] when its listener has no
/// room for another connection for that time. Writes to the stream have that timeout too.
pub(super) fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let (socket, address) = unconnected(path)?;
    let stream = UnixStream::from(socket);
    stream.set_write_timeout(Some(timeout))?;
    // SAFETY: the address is valid for its length.
    check(unsafe {
        libc::connect(
            stream.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as _,
        )
    })?;
    Ok(stream)
}

/// A new socket, and the address of `path`.
fn unconnected(path: &Path) -> io::Result<(OwnedFd, libc::sockaddr_un)> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as _;
    // One byte stays 0, as the end of the name.
    if bytes.is_empty() || bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path is empty or longer than 107 bytes",
        ));
    }
    for (target, &byte) in address.sun_path.iter_mut().zip(bytes) {
        *target = byte as _;
    }
    // SAFETY: the call has no memory effects.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: the descriptor was just returned by the kernel and has no other owner.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, address))
}

/// The error of a system call that has failed.
fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_socket_is_private_and_goes_away_with_its_folder() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("vmsrs/vm.sock");
        let socket = BoundSocket::bind(&path, Folder::MayBeMade).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.parent().unwrap().exists());
    }

    #[test]
    fn sockets_of_running_vms_are_found_by_name() {
        let place = tempfile::tempdir().unwrap();
        let bind = |name: &str| {
            let path = place.path().join(name);
            BoundSocket::bind(&path, Folder::MustExist).unwrap()
        };
        let _vms = ["web.sock", "db-1.sock", "other"].map(bind);
        fs::write(place.path().join("file.sock"), "").unwrap();
        let names: Vec<_> = sockets_in(place.path())
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["db-1", "web"]);
        assert!(sockets_in(&place.path().join("none")).is_empty());
    }

    #[test]
    fn a_folder_that_was_there_stays() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("vm.sock");
        drop(BoundSocket::bind(&path, Folder::MayBeMade).unwrap());
        assert!(place.path().exists());
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("vm.sock");
        drop(UnixListener::bind(&path).unwrap());
        let first = BoundSocket::bind(&path, Folder::MayBeMade).unwrap();
        assert!(matches!(
            BoundSocket::bind(&path, Folder::MayBeMade),
            Err(ServerError::Busy(busy)) if busy == path
        ));
        UnixStream::connect(&path).unwrap();
        drop(first);
    }

    #[test]
    fn a_listener_with_a_full_backlog_is_not_waited_for() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("vm.sock");
        let _stuck = BoundSocket::bind(&path, Folder::MayBeMade).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match connect(&path, PROBE) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(matches!(
            BoundSocket::bind(&path, Folder::MayBeMade),
            Err(ServerError::Busy(_))
        ));
        assert!(path.exists());
    }

    #[test]
    fn a_file_in_the_sockets_place_is_not_touched() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("vm.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            BoundSocket::bind(&path, Folder::MayBeMade),
            Err(ServerError::NoSocket(_))
        ));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_path_that_is_too_long_is_refused_and_leaves_no_folder() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("folder").join("x".repeat(120));
        assert!(matches!(
            BoundSocket::bind(&path, Folder::MayBeMade),
            Err(ServerError::Bind { .. })
        ));
        assert!(!place.path().join("folder").exists());
    }

    #[test]
    fn names_that_lead_out_of_the_folder_are_refused() {
        let folder = || Some(PathBuf::from("/run"));
        assert_eq!(
            path_in(folder(), "vm-1"),
            Ok(PathBuf::from("/run/vmsrs/vm-1.sock"))
        );
        for name in ["", "..", ".hidden", "a/b", "a b", &"x".repeat(65)] {
            assert_eq!(path_in(folder(), name), Err(PathError::Name(name.into())));
        }
        for folder in [None, Some(PathBuf::from("relative")), Some(PathBuf::new())] {
            assert_eq!(path_in(folder, "vm"), Err(PathError::NoRuntimeFolder));
        }
    }

    #[test]
    fn a_folder_that_must_exist_is_not_made() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("folder/vm.sock");
        assert!(matches!(
            BoundSocket::bind(&path, Folder::MustExist),
            Err(ServerError::Bind { .. })
        ));
        assert!(!place.path().join("folder").exists());
    }
}
