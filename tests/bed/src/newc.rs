//! Writes cpio archives in the `newc` format, which the kernel unpacks as its initramfs.
//!
//! The layout is in the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`:
//! an ASCII header of thirteen 8-digit hexadecimal fields, the name, the data, each padded to four bytes.

use std::collections::BTreeSet;
use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// Writes an archive, entry by entry; parent folders are added automatically.
pub struct Writer<W> {
    out: W,
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

    /// Adds a regular file with the given permission bits.
    ///
    /// # Errors
    ///
    /// Those of the underlying writer, and `InvalidInput` when the data is 4 GiB or larger.
    pub fn file(&mut self, name: &str, permissions: u32, data: &[u8]) -> io::Result<()> {
        self.parents(name)?;
        self.entry(clean(name), REGULAR | permissions, data)
    }

    /// Adds a symbolic link that points to `target`.
    ///
    /// # Errors
    ///
    /// Those of the underlying writer.
    pub fn symlink(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.parents(name)?;
        self.entry(clean(name), SYMLINK | 0o777, target.as_bytes())
    }

    /// Adds a folder; adding it again does nothing.
    ///
    /// # Errors
    ///
    /// Those of the underlying writer.
    pub fn folder(&mut self, name: &str) -> io::Result<()> {
        self.parents(name)?;
        let name = clean(name);
        if name.is_empty() || !self.folders.insert(name.to_owned()) {
            return Ok(());
        }
        self.entry(name, DIRECTORY | 0o755, &[])
    }

    /// Ends the archive and returns the writer.
    ///
    /// # Errors
    ///
    /// Those of the underlying writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, name: &str) -> io::Result<()> {
        let name = clean(name);
        for (end, _) in name.match_indices('/') {
            let parent = &name[..end];
            if self.folders.insert(parent.to_owned()) {
                self.entry(parent, DIRECTORY | 0o755, &[])?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len()).map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name} is too large for an initramfs"),
            )
        })?;
        let inode = self.next_inode;
        self.next_inode += 1;
        let name_size = name.len() + 1;
        // Fields: inode, mode, uid, gid, links, mtime, size, device (2), rdevice (2), name size, checksum.
        write!(
            self.out,
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}\
             {0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}{name}\0",
            0, 1
        )?;
        const HEADER: usize = 110;
        self.pad(HEADER + name_size)?;
        self.out.write_all(data)?;
        self.pad(data.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        const ZEROES: [u8; 3] = [0; 3];
        self.out.write_all(&ZEROES[..written.wrapping_neg() % 4])
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
}
