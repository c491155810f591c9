//! The host's side of the virtual machine: bits that flip in its memory.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

/// Name of the file in memory that is the window.
const WINDOW: &str = "/memfd:vmsrs-window";
/// Blocks of a domain's heap begin at multiples of this.
const GRAIN: usize = 16;

/// A virtual machine that this process may look into.
#[derive(Debug, Clone)]
pub struct Host {
    /// Number of the process of `vmsrs run`.
    pub process: u32,
    /// Its control socket.
    pub socket: PathBuf,
}

impl Host {
    /// Flips a bit in one of the frames that have `text` at the begin of a block, past every
    /// protection; `number` says in which frame and which bit. False if there is none.
    ///
    /// # Errors
    ///
    /// When the window cannot be read or written.
    pub fn flip(&self, text: &[u8], number: u64) -> io::Result<bool> {
        let window = self.window()?;
        let places = find(&window, text)?;
        if places.is_empty() {
            return Ok(false);
        }
        let number = usize::try_from(number >> 8).unwrap_or(usize::MAX >> 1);
        let byte = number % text.len();
        let place = places[number % places.len()] + byte as u64;
        window.write_all_at(&[text[byte] ^ 1 << (number % 8)], place)?;
        Ok(true)
    }

    /// Has the host hold the domain's sealed pages against their checksums.
    ///
    /// # Errors
    ///
    /// When some of them cannot be repaired, or the command fails.
    pub fn scrub(&self, domain: &str) -> io::Result<()> {
        let output = Command::new("vmsrs")
            .args(["scrub", "--app", "ledger", "--domain", domain, "--socket"])
            .arg(&self.socket)
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("{}: {words}", output.status)))
    }

    fn window(&self) -> io::Result<File> {
        for file in fs::read_dir(format!("/proc/{}/fd", self.process))? {
            let path = file?.path();
            let is_window = |target: PathBuf| target.to_string_lossy().starts_with(WINDOW);
            if fs::read_link(&path).is_ok_and(is_window) {
                return OpenOptions::new().read(true).write(true).open(path);
            }
        }
        Err(io::Error::other("vmsrs run has no window"))
    }
}

/// Where `text` stands at the begin of a block.
fn find(file: &File, text: &[u8]) -> io::Result<Vec<u64>> {
    let mut places = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    let mut from = 0;
    while let Some((start, end)) = data(file, from)? {
        let mut place = start;
        while place < end {
            let length = usize::try_from(end - place).map_or(buffer.len(), |n| n.min(buffer.len()));
            file.read_exact_at(&mut buffer[..length], place)?;
            let blocks = buffer[..length].chunks(GRAIN).enumerate();
            let starts = blocks.filter(|(number, block)| {
                block[0] == text[0] && buffer[number * GRAIN..length].starts_with(text)
            });
            places.extend(starts.map(|(number, _)| place + (number * GRAIN) as u64));
            place += length as u64;
        }
        from = end;
    }
    Ok(places)
}

/// The next part of the file from `from` on that has data.
fn data(file: &File, from: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |from: u64, whence| -> io::Result<u64> {
        let from = i64::try_from(from).map_err(io::Error::other)?;
        // SAFETY: moves the file's own position only.
        let place = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
        u64::try_from(place).map_err(|_| io::Error::last_os_error())
    };
    match seek(from, libc::SEEK_DATA) {
        Ok(start) => Ok(Some((start, seek(start, libc::SEEK_HOLE)?))),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_text_is_found_at_the_begin_of_blocks_behind_holes() {
        let path = std::env::temp_dir().join(format!("vmsrs-find-{}", std::process::id()));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        fs::remove_file(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(b"needle", 4096 + 32).unwrap();
        file.write_all_at(b"needle", 4096 + 72).unwrap();
        file.write_all_at(b"needle", 6 << 20).unwrap();
        file.flush().unwrap();
        assert_eq!(find(&file, b"needle").unwrap(), [4096 + 32, 6 << 20]);
        assert_eq!(find(&file, b"another").unwrap(), [0; 0]);
    }
}
