//! Writes cpio archives in the `newc` format, which Linux unpacks as its initramfs.
//!
//! The layout is in the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`: an
//! ASCII header of a magic number and thirteen 8-digit hexadecimal fields, the name, the data, the
//! last two each padded to four bytes.

use std::collections::BTreeSet;
use std::io::{self, Write};

const MAGIC: &str = "070701";
/// The name of the last entry. The kernel takes an entry of this name for the end, whatever its type.
const TRAILER: &[u8] = b"TRAILER!!!";

/// Bytes of the magic number and the fields.
const HEADER: usize = 6 + 13 * 8;

/// Whether an archive can hold an entry of this name: it must not be the one that ends an archive.
pub fn is_name(name: &[u8]) -> bool {
    name != TRAILER
}

/// Bytes that an entry takes in an archive, for a name and data of these lengths.
pub const fn entry_size(name: usize, data: usize) -> u64 {
    ((HEADER + name + 1).next_multiple_of(4) + data.next_multiple_of(4)) as u64
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// What an entry's header says, beside name and size. The owner is always root.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes {
    /// File type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Time of modification, in seconds since the Unix epoch.
    pub mtime: u32,
    /// Major number of a device node.
    pub device_major: u32,
    /// Minor number of a device node.
    pub device_minor: u32,
}

/// Writes an archive entry by entry.
pub struct Writer<W> {
    out: W,
    /// Folders made by [`Writer::file`], [`Writer::symlink`] and [`Writer::folder`].
    folders: BTreeSet<String>,
    next_inode: u32,
}

impl<W: Write> Writer<W> {
    /// Starts an archive on `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            folders: BTreeSet::new(),
            next_inode: 1,
        }
    }

    /// Adds one entry as it is given. The name has no leading slash; its parent folders must be in
    /// the archive already.
    ///
    /// # Errors
    ///
    /// Those of the underlying writer, and `InvalidInput` when the data is 4 GiB or larger, or the name is not an
    /// entry's ([`is_name`]).
    pub fn entry(&mut self, name: &[u8], attributes: &Attributes, data: &[u8]) -> io::Result<()> {
        if !is_name(name) {
            let reason = "the name TRAILER!!! ends an archive, so no file can have it";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        self.append(name, attributes, data)
    }

    fn append(&mut self, name: &[u8], attributes: &Attributes, data: &[u8]) -> io::Result<()> {
        let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let size = u32::try_from(data.len()).map_err(too_large)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
        let inode = self.next_inode;
        self.next_inode += 1;
        let fields = [
            inode,
            attributes.mode,
            0, // user
            0, // group
            1, // links
            attributes.mtime,
            size,
            0, // device of the file system, major and minor
            0,
            attributes.device_major,
            attributes.device_minor,
            name_size,
            0, // checksum
        ];
        self.out.write_all(MAGIC.as_bytes())?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(name)?;
        self.out.write_all(&[0])?;
        self.pad(HEADER + name.len() + 1)?;
        self.out.write_all(data)?;
        self.pad(data.len())
    }

    /// Adds a regular file with the given permission bits, and its parent folders.
    ///
    /// # Errors
    ///
    /// As [`Writer::entry`].
    pub fn file(&mut self, name: &str, permissions: u32, data: &[u8]) -> io::Result<()> {
        self.child(name, REGULAR | permissions, data)
    }

    /// Adds a symbolic link to `target`, and its parent folders.
    ///
    /// # Errors
    ///
    /// As [`Writer::entry`].
    pub fn symlink(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.child(name, SYMLINK | 0o777, target.as_bytes())
    }

    /// Adds a folder and its parents; adding it again does nothing.
    ///
    /// # Errors
    ///
    /// As [`Writer::entry`].
    pub fn folder(&mut self, name: &str) -> io::Result<()> {
        let name = clean(name);
        let ends = name.match_indices('/').map(|(end, _)| end);
        for end in ends.chain([name.len()]) {
            let folder = &name[..end];
            if !folder.is_empty() && self.folders.insert(folder.to_owned()) {
                self.entry(folder.as_bytes(), &with_mode(DIRECTORY | 0o755), &[])?;
            }
        }
        Ok(())
    }

    /// Ends the archive and returns the writer.
    ///
    /// # Errors
    ///
    /// Those of the underlying writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.append(TRAILER, &Attributes::default(), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn child(&mut self, name: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        let name = clean(name);
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.folder(parent)?;
        }
        self.entry(name.as_bytes(), &with_mode(mode), data)
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        const ZEROS: [u8; 3] = [0; 3];
        self.out.write_all(&ZEROS[..written.wrapping_neg() % 4])
    }
}

fn with_mode(mode: u32) -> Attributes {
    Attributes {
        mode,
        ..Attributes::default()
    }
}

/// Archive names have no leading slash.
fn clean(name: &str) -> &str {
    name.trim_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads an archive back: name, mode and data of each entry.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[6 + index * 8..14 + index * 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_size - 1], 0);
            let data_at = (110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(bytes.len(), data_at);
                return entries;
            }
            entries.push((name, mode, bytes[data_at..data_at + size].to_vec()));
            bytes = &bytes[(data_at + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn parents_come_once_and_before_their_files() {
        let mut writer = Writer::new(Vec::new());
        writer.file("/a/b/one", 0o644, b"1").unwrap();
        writer.file("a/b/two", 0o755, b"22").unwrap();
        writer.symlink("a/link", "b/one").unwrap();
        writer.folder("a").unwrap();
        let names: Vec<_> = read(&writer.finish().unwrap())
            .into_iter()
            .map(|e| (e.0, e.1))
            .collect();
        let expected = [
            ("a", 0o040_755),
            ("a/b", 0o040_755),
            ("a/b/one", 0o100_644),
            ("a/b/two", 0o100_755),
            ("a/link", 0o120_777),
        ];
        assert_eq!(names, expected.map(|(name, mode)| (name.to_owned(), mode)));
    }

    #[test]
    fn names_need_not_be_utf8() {
        let mut writer = Writer::new(Vec::new());
        writer
            .entry(b"caf\xe9", &with_mode(REGULAR | 0o644), b"")
            .unwrap();
        let bytes = writer.finish().unwrap();
        assert_eq!(&bytes[HEADER..][..5], b"caf\xe9\0");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            files in prop::collection::btree_map("[a-z]{1,9}", prop::collection::vec(any::<u8>(), 0..64), 0..8)
        ) {
            let mut writer = Writer::new(Vec::new());
            for (name, data) in &files {
                writer.file(name, 0o600, data).unwrap();
            }
            let entries = read(&writer.finish().unwrap());
            prop_assert_eq!(entries.len(), files.len());
            for (name, mode, data) in entries {
                prop_assert_eq!(mode, 0o100_600);
                prop_assert_eq!(&files[&name], &data);
            }
        }
    }

    #[test]
    fn the_name_that_ends_an_archive_is_refused() {
        let mut writer = Writer::new(Vec::new());
        let error = writer.file("/TRAILER!!!", 0o644, b"").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("TRAILER!!!"), "{error}");
        writer.symlink("TRAILER!!!", "a").unwrap_err();
        writer.folder("TRAILER!!!/a").unwrap_err();
        // The kernel compares whole paths.
        writer.file("a/TRAILER!!!", 0o644, b"").unwrap();
        let bytes = writer.finish().unwrap();
        let ends = bytes.windows(TRAILER.len()).filter(|name| name == &TRAILER);
        assert_eq!(ends.count(), 2);
    }

    #[test]
    fn entries_have_the_size_that_is_told() {
        for (name, data) in [("a", ""), ("abc", "x"), ("some/name", "12345")] {
            let mut writer = Writer::new(Vec::new());
            let attributes = Attributes::default();
            writer
                .entry(name.as_bytes(), &attributes, data.as_bytes())
                .unwrap();
            let whole = writer.finish().unwrap().len() as u64;
            let end = entry_size("TRAILER!!!".len(), 0);
            assert_eq!(whole, entry_size(name.len(), data.len()) + end);
        }
    }
}
