//! The initramfs on the command line: an archive, or a folder that is packed on the fly.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::pack::{PackError, pack};
use crate::size::Size;
use crate::vmm::loader::open_at_once;

/// The first bytes of everything that a kernel unpacks: cpio archives, and what Linux's
/// `lib/decompress.c` knows.
const SIGNATURES: [&[u8]; 9] = [
    b"070701",
    b"070702",
    &[0x1f, 0x8b],
    b"BZh",
    &[0xfd, b'7', b'z', b'X', b'Z', 0],
    &[0x5d, 0x00, 0x00],
    &[0x89, b'L', b'Z', b'O'],
    &[0x02, 0x21, 0x4c, 0x18],
    &[0x28, 0xb5, 0x2f, 0xfd],
];

/// Why an initramfs cannot be used.
#[derive(Debug, Error)]
pub enum InitramfsError {
    /// The file cannot be read.
    #[error("cannot read the initramfs {}: check the path and its permissions", .path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is something else.
    #[error(
        "{} is not an initramfs: give a cpio archive (it may be compressed) or a folder",
        .0.display()
    )]
    NoArchive(PathBuf),
    /// The file is larger than the guest's memory.
    #[error(
        "the initramfs {} has more bytes than the guest's memory of {memory}: give more to --memory",
        .path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The guest's memory.
        memory: Size,
    },
    /// The folder has no program to start.
    #[error(
        "the folder {} has no `init`: put a program there, or name another with \
         --cmdline rdinit=PATH",
        .0.display()
    )]
    NoInit(PathBuf),
    /// The folder cannot be packed.
    #[error(transparent)]
    Pack(#[from] PackError),
}

/// The initramfs at `path`, as the kernel takes it. `cmdline` tells whether a folder needs an
/// `init`. No more of a file is read than fits into the guest's `memory`.
///
/// # Errors
///
/// Fails with a message that names the remedy when there is no usable initramfs.
pub fn load(path: &Path, cmdline: &str, memory: Size) -> Result<Vec<u8>, InitramfsError> {
    let read_error = |source| InitramfsError::Read {
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(read_error)?.is_dir() {
        let named = cmdline
            .split_whitespace()
            .any(|word| word.starts_with("rdinit="));
        if !named && fs::symlink_metadata(path.join("init")).is_err() {
            return Err(InitramfsError::NoInit(path.to_owned()));
        }
        return Ok(pack(path, memory)?);
    }
    let (file, metadata) = open_at_once(path).map_err(read_error)?;
    if !metadata.is_file() {
        return Err(InitramfsError::NoArchive(path.to_owned()));
    }
    let too_large = || InitramfsError::TooLarge {
        path: path.to_owned(),
        memory,
    };
    if metadata.len() > memory.0 {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    // The file may grow meanwhile, or not tell its length, as those of procfs.
    file.take(memory.0.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(read_error)?;
    if bytes.len() as u64 > memory.0 {
        return Err(too_large());
    }
    // The kernel skips zeros in front of and between archives.
    let start = bytes.iter().position(|&byte| byte != 0).unwrap_or(0);
    let known = |signature: &&[u8]| bytes[start..].starts_with(signature);
    if !SIGNATURES.iter().any(known) {
        return Err(InitramfsError::NoArchive(path.to_owned()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: Size = Size(64 << 20);

    #[test]
    fn archives_are_taken_as_they_are_and_other_files_refused() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        for bytes in [
            &b"070701rest"[..],
            b"\0\0\0\x1f\x8brest",
            b"\x28\xb5\x2f\xfd",
        ] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(load(&path, "", MEMORY).unwrap(), bytes);
        }
        for bytes in [&b""[..], b"hello", b"\0\0\0\0", b"\x7fELF"] {
            fs::write(&path, bytes).unwrap();
            assert!(matches!(
                load(&path, "", MEMORY),
                Err(InitramfsError::NoArchive(_))
            ));
        }
    }

    #[test]
    fn a_folder_needs_an_init_or_a_word_about_it() {
        let place = tempfile::tempdir().unwrap();
        assert!(matches!(
            load(place.path(), "quiet", MEMORY),
            Err(InitramfsError::NoInit(_))
        ));
        assert!(load(place.path(), "quiet rdinit=/bin/sh", MEMORY).is_ok());
        fs::write(place.path().join("init"), "").unwrap();
        assert!(
            load(place.path(), "", MEMORY)
                .unwrap()
                .starts_with(b"070701")
        );
    }

    #[test]
    fn a_missing_initramfs_is_named() {
        let error = load(Path::new("/no/such/file"), "", MEMORY).unwrap_err();
        assert!(error.to_string().contains("/no/such/file"));
    }

    #[test]
    fn a_file_larger_than_the_guests_memory_is_not_read() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        fs::write(&path, "070701").unwrap();
        assert!(load(&path, "", Size(6)).is_ok());
        assert!(matches!(
            load(&path, "", Size(5)),
            Err(InitramfsError::TooLarge { .. })
        ));
    }
}
