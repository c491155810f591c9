//! Packs a folder into a cpio archive in the `newc` format, which the kernel unpacks as its
//! initramfs (Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vmsrs_newc::{Attributes, Writer, entry_size, is_name};

use crate::size::Size;

/// Why a folder cannot be packed.
#[derive(Debug, Error)]
pub enum PackError {
    /// Something in it cannot be read.
    #[error("cannot read {} for the initramfs", .path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The format has 32 bits for a file's size.
    #[error("{} is too large for an initramfs: it can hold files below 4 GiB", .0.display())]
    TooLarge(PathBuf),
    /// All of it together is larger than the guest's memory.
    #[error(
        "the folder {} has more bytes than the guest's memory of {memory}: give more to --memory, \
         or a smaller folder",
        .folder.display()
    )]
    TooMuch {
        /// The folder.
        folder: PathBuf,
        /// The guest's memory.
        memory: Size,
    },
    /// It has too many files.
    #[error(
        "the folder {} has more than {ENTRIES_MAX} files and folders: give the root of a guest's \
         file system",
        .0.display()
    )]
    TooMany(PathBuf),
    /// A path in it is longer than the kernel unpacks.
    #[error(
        "{} is nested too deeply for an initramfs: a path in it has at most {NAME_MAX} bytes and \
         {DEPTH_MAX} folders",
        .0.display()
    )]
    TooDeep(PathBuf),
    /// It has the name that ends an archive.
    #[error(
        "{} cannot be in an initramfs: the kernel takes this name for the end of the archive",
        .0.display()
    )]
    EndsArchive(PathBuf),
}

/// Maximum number of files and folders.
const ENTRIES_MAX: usize = 1 << 20;

/// Longest path in the archive: the kernel skips an entry whose name and its NUL exceed `PATH_MAX`.
const NAME_MAX: usize = libc::PATH_MAX as usize - 1;

/// Largest file: the format has 32 bits for its size.
const FILE_MAX: u64 = u32::MAX as u64;

/// Maximum number of folders in each other.
const DEPTH_MAX: usize = 256;

/// Packs everything below `folder`: files, folders, symbolic links, device nodes, pipes and
/// sockets, with their modes and times. Everything belongs to root in the archive, so that a folder
/// that an ordinary user made is a system as well. A file with several names becomes several files.
/// No more is read than fits into the guest's `memory`.
///
/// # Errors
///
/// Fails when something cannot be read, and when there is too much of it.
pub(super) fn pack(folder: &Path, memory: Size) -> Result<Vec<u8>, PackError> {
    let mut archive = Archive {
        writer: Writer::new(Vec::new()),
        root: folder,
        memory,
        bytes_left: memory.0,
        entries_left: ENTRIES_MAX,
    };
    archive.folder(folder, &mut Vec::new(), 0)?;
    archive.writer.finish().map_err(read_error(folder))
}

struct Archive<'a> {
    writer: Writer<Vec<u8>>,
    root: &'a Path,
    memory: Size,
    bytes_left: u64,
    entries_left: usize,
}

impl Archive<'_> {
    /// Adds what is in `folder`, in order of the names; `name` is the folder's own name in the
    /// archive, `depth` the number of folders around it.
    fn folder(&mut self, folder: &Path, name: &mut Vec<u8>, depth: usize) -> Result<(), PackError> {
        if depth > DEPTH_MAX {
            return Err(PackError::TooDeep(folder.to_owned()));
        }
        let most = self.entries_left + 1;
        let list = || -> io::Result<Vec<_>> { fs::read_dir(folder)?.take(most).collect() };
        let mut entries = list().map_err(read_error(folder))?;
        self.entries_left = self
            .entries_left
            .checked_sub(entries.len())
            .ok_or_else(|| PackError::TooMany(self.root.to_owned()))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        let length = name.len();
        for entry in entries {
            if length != 0 {
                name.push(b'/');
            }
            name.extend_from_slice(entry.file_name().as_bytes());
            self.entry(&entry.path(), name, depth)?;
            name.truncate(length);
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: &mut Vec<u8>, depth: usize) -> Result<(), PackError> {
        if name.len() > NAME_MAX {
            return Err(PackError::TooDeep(path.to_owned()));
        }
        if !is_name(name) {
            return Err(PackError::EndsArchive(path.to_owned()));
        }
        let metadata = fs::symlink_metadata(path).map_err(read_error(path))?;
        let kind = metadata.file_type();
        let data = if kind.is_file() {
            self.read(path, metadata.len())?
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(read_error(path))?;
            target.as_os_str().as_bytes().to_vec()
        } else {
            Vec::new()
        };
        self.bytes_left = self
            .bytes_left
            .checked_sub(entry_size(name.len(), data.len()))
            .ok_or_else(|| self.too_much())?;
        // Only a size can be refused: a vector takes everything.
        self.writer
            .entry(name, &attributes(&metadata), &data)
            .map_err(|_| PackError::TooLarge(path.to_owned()))?;
        if kind.is_dir() {
            self.folder(path, name, depth + 1)?;
        }
        Ok(())
    }

    /// The content of a file that tells this length, or one byte more than there is room for: the
    /// file may grow meanwhile, or not tell its length, as those of procfs.
    fn read(&self, path: &Path, length: u64) -> Result<Vec<u8>, PackError> {
        if length > self.bytes_left {
            return Err(self.too_much());
        }
        if length > FILE_MAX {
            return Err(PackError::TooLarge(path.to_owned()));
        }
        let most = self.bytes_left.min(FILE_MAX) + 1;
        let mut data = Vec::new();
        File::open(path)
            .and_then(|file| file.take(most).read_to_end(&mut data))
            .map_err(read_error(path))?;
        Ok(data)
    }

    fn too_much(&self) -> PackError {
        PackError::TooMuch {
            folder: self.root.to_owned(),
            memory: self.memory,
        }
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

    const MEMORY: Size = Size(64 << 20);

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
        let entries = unpack(&pack(place.path(), MEMORY).unwrap());
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
        assert_eq!(unpack(&pack(place.path(), MEMORY).unwrap()), []);
    }

    #[test]
    fn device_nodes_keep_their_numbers() {
        let metadata = fs::metadata("/dev/null").unwrap();
        let attributes = attributes(&metadata);
        assert_eq!(attributes.mode & libc::S_IFMT, libc::S_IFCHR);
        assert_eq!((attributes.device_major, attributes.device_minor), (1, 3));
    }

    #[test]
    fn a_folder_larger_than_the_guests_memory_is_refused() {
        let place = tempfile::tempdir().unwrap();
        for file in ["a", "b"] {
            fs::write(place.path().join(file), [7; 600]).unwrap();
        }
        assert!(pack(place.path(), Size(2048)).is_ok());
        let error = pack(place.path(), Size(1024)).unwrap_err();
        assert!(error.to_string().contains("--memory"), "{error}");
    }

    #[test]
    fn a_file_larger_than_the_format_allows_is_refused_unread() {
        let place = tempfile::tempdir().unwrap();
        let file = File::create(place.path().join("disk")).unwrap();
        file.set_len(1 << 40).unwrap();
        let error = pack(place.path(), Size(1 << 41)).unwrap_err();
        assert!(matches!(error, PackError::TooLarge(_)), "{error}");
        assert!(error.to_string().contains("disk"), "{error}");
    }

    #[test]
    fn a_file_with_the_name_that_ends_an_archive_is_refused() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("TRAILER!!!"), b"").unwrap();
        let error = pack(place.path(), MEMORY).unwrap_err();
        assert!(matches!(error, PackError::EndsArchive(_)), "{error}");
        assert!(error.to_string().contains("TRAILER!!!"), "{error}");
    }

    #[test]
    fn a_path_that_the_kernel_does_not_unpack_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let nested = |count| std::iter::repeat_n("d", count).collect::<PathBuf>();
        fs::create_dir_all(place.path().join(nested(DEPTH_MAX))).unwrap();
        assert!(pack(place.path(), MEMORY).is_ok());
        fs::create_dir_all(place.path().join(nested(DEPTH_MAX + 1))).unwrap();
        let error = pack(place.path(), MEMORY).unwrap_err();
        assert!(matches!(error, PackError::TooDeep(_)), "{error}");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let error = pack(Path::new("/no/such/folder"), MEMORY).unwrap_err();
        assert!(error.to_string().contains("/no/such/folder"));
    }
}
