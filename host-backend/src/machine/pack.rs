//! Packs a folder into a cpio archive in the `newc` format, which the kernel unpacks as its
//! initramfs (Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vmsrs_newc::{Attributes, Writer};

/// Why a folder cannot be packed.
#[derive(Debug, Error)]
pub enum PackError {
    /// Something in it cannot be read.
    #[error("cannot read {} for the initramfs", .path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The format has 32 bits for a file's size.
    #[error("{} is too large for an initramfs: it can hold files below 4 GiB", .0.display())]
    TooLarge(PathBuf),
}

/// Packs everything below `folder`: files, folders, symbolic links, device nodes, pipes and
/// sockets, with their modes and times. Everything belongs to root in the archive, so that a folder
/// that an ordinary user made is a system as well. A file with several names becomes several files.
///
/// # Errors
///
/// Fails when something cannot be read.
pub(super) fn pack(folder: &Path) -> Result<Vec<u8>, PackError> {
    let mut archive = Archive(Writer::new(Vec::new()));
    archive.folder(folder, &mut Vec::new())?;
    archive.0.finish().map_err(read_error(folder))
}

struct Archive(Writer<Vec<u8>>);

impl Archive {
    /// Adds what is in `folder`, in order of the names; `name` is the folder's own name in the
    /// archive.
    fn folder(&mut self, folder: &Path, name: &mut Vec<u8>) -> Result<(), PackError> {
        let list = || -> io::Result<Vec<_>> { fs::read_dir(folder)?.collect() };
        let mut entries = list().map_err(read_error(folder))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        let length = name.len();
        for entry in entries {
            if length != 0 {
                name.push(b'/');
            }
            name.extend_from_slice(entry.file_name().as_bytes());
            self.entry(&entry.path(), name)?;
            name.truncate(length);
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: &mut Vec<u8>) -> Result<(), PackError> {
        let metadata = fs::symlink_metadata(path).map_err(read_error(path))?;
        let kind = metadata.file_type();
        let data = if kind.is_file() {
            fs::read(path).map_err(read_error(path))?
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(read_error(path))?;
            target.as_os_str().as_bytes().to_vec()
        } else {
            Vec::new()
        };
        // Only a size can be refused: a vector takes everything.
        self.0
            .entry(name, &attributes(&metadata), &data)
            .map_err(|_| PackError::TooLarge(path.to_owned()))?;
        if kind.is_dir() {
            self.folder(path, name)?;
        }
        Ok(())
    }
}

fn attributes(metadata: &Metadata) -> Attributes {
    Attributes {
        mode: metadata.mode(),
        // Times outside 1970 to 2106 have no place in the format.
        mtime: u32::try_from(metadata.mtime()).unwrap_or(0),
        device_major: libc::major(metadata.rdev()) as u32,
        device_minor: libc::minor(metadata.rdev()) as u32,
    }
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> PackError {
    move |source| PackError::Read {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// Name, mode and data of every entry.
    fn unpack(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let take = |bytes: &mut &[u8], length: usize| {
            let (head, tail) = bytes.split_at(length);
            *bytes = tail;
            head.to_vec()
        };
        loop {
            assert_eq!(take(&mut bytes, 6), b"070701");
            let fields: Vec<u32> = (0..13)
                .map(|_| {
                    let digits = String::from_utf8(take(&mut bytes, 8)).unwrap();
                    u32::from_str_radix(&digits, 16).unwrap()
                })
                .collect();
            let name_size = fields[11] as usize;
            let name = take(&mut bytes, (110 + name_size).next_multiple_of(4) - 110);
            let size = fields[6] as usize;
            let mut data = take(&mut bytes, size.next_multiple_of(4));
            data.truncate(size);
            let name = String::from_utf8(name[..name_size - 1].to_vec()).unwrap();
            if name == "TRAILER!!!" {
                assert!(bytes.is_empty());
                return entries;
            }
            entries.push((name, fields[1], data));
        }
    }

    #[test]
    fn files_folders_links_and_modes_are_kept() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        fs::create_dir_all(path("bin/deep")).unwrap();
        fs::write(path("init"), b"#!/bin/sh\n").unwrap();
        fs::set_permissions(path("init"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::write(path("bin/deep/empty"), b"").unwrap();
        symlink("deep/nothing", path("bin/link")).unwrap();
        let entries = unpack(&pack(place.path()).unwrap());
        let names: Vec<_> = entries.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(
            names,
            ["bin", "bin/deep", "bin/deep/empty", "bin/link", "init"]
        );
        assert_eq!(entries[0].1 & libc::S_IFMT, libc::S_IFDIR);
        assert_eq!(entries[3].1 & libc::S_IFMT, libc::S_IFLNK);
        assert_eq!(entries[3].2, b"deep/nothing");
        assert_eq!(entries[4].1, libc::S_IFREG | 0o4755);
        assert_eq!(entries[4].2, b"#!/bin/sh\n");
    }

    #[test]
    fn an_empty_folder_is_an_empty_archive() {
        let place = tempfile::tempdir().unwrap();
        assert_eq!(unpack(&pack(place.path()).unwrap()), []);
    }

    #[test]
    fn device_nodes_keep_their_numbers() {
        let metadata = fs::metadata("/dev/null").unwrap();
        let attributes = attributes(&metadata);
        assert_eq!(attributes.mode & libc::S_IFMT, libc::S_IFCHR);
        assert_eq!((attributes.device_major, attributes.device_minor), (1, 3));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let error = pack(Path::new("/no/such/folder")).unwrap_err();
        assert!(error.to_string().contains("/no/such/folder"));
    }
}
