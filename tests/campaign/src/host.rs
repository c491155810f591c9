//! The host's side of the virtual machine: corrupts its memory, and asks what the host has found.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use vmsrs_bed::guest::Control;
use vmsrs_bed::{patience, vault};

/// Kinds of incidents that fail a request but not its process.
const FAILED_REQUESTS: [&str; 18] = [
    "memory",
    "arithmetic",
    "instruction",
    "abort",
    "stack-overflow",
    "foreign-write",
    "double-free",
    "foreign-free",
    "red-zone",
    "use-after-free",
    "heap-corrupt",
    "panic",
    "deadline",
    // A request that its thread has left.
    "thread-death",
    "no-frames",
    "invariant",
    "foreign-draft",
    "damaged",
];
/// Blocks of a domain's heap start at multiples of this.
const GRAIN: usize = 16;

/// Limit for one answer of the supervisor.
const SUPERVISOR_TIMEOUT: Duration = Duration::from_secs(60);
/// Limit for all attempts to get an answer.
const SUPERVISOR_LIMIT: Duration = Duration::from_secs(600);

/// How a frame is corrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// A bit flips silently.
    Flip,
    /// The hardware reports its memory as broken.
    Poison,
}

/// Damage that the host has found in sealed pages, by its checks and by accesses of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scrubs {
    /// Damaged pages that were restored from the mirror.
    pub repaired: u64,
    /// Missing or damaged copies in the mirror that were replaced.
    pub mirrored: u64,
    /// Incidents of pages whose memory was broken.
    pub poisoned: u64,
}

impl Scrubs {
    /// The difference from `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            repaired: self.repaired.saturating_sub(before.repaired),
            mirrored: self.mirrored.saturating_sub(before.mirrored),
            poisoned: self.poisoned.saturating_sub(before.poisoned),
        }
    }

    /// What detected the damage of a frame, if anything did.
    #[must_use]
    pub fn detector(self) -> Option<&'static str> {
        match self {
            Self { poisoned: 1.., .. } => Some("poisoned memory"),
            Self { repaired: 1.., .. } => Some("checksum"),
            Self { mirrored: 1.., .. } => Some("check of the mirror"),
            _ => None,
        }
    }
}

/// A virtual machine that this process can inspect.
#[derive(Debug, Clone)]
pub struct Host {
    /// The process of `vmsrs run`.
    pub process: u32,
    /// Its control socket.
    pub control: Control,
    /// The log of the guest's console.
    pub console: PathBuf,
    /// The supervisor in the guest, which kills processes on request.
    pub supervisor: SocketAddr,
}

impl Host {
    /// Corrupts one of the frames with `text` at the start of a block, bypassing all protection; `number` selects the
    /// frame and the bit. False if there is no such frame, or if it was retired and its memory freed at that moment:
    /// nothing is corrupted then.
    ///
    /// # Errors
    ///
    /// When the vault cannot be read or written, or memory cannot be poisoned.
    pub fn harm(&self, harm: Harm, text: &[u8], number: u64) -> io::Result<bool> {
        let vault = vault::open(self.process)?;
        let places = find(&vault, text)?;
        if places.is_empty() {
            return Ok(false);
        }
        let number = usize::try_from(number >> 8).unwrap_or(usize::MAX >> 1);
        let place = places[number % places.len()];
        match harm {
            Harm::Flip => {
                let byte = number % text.len();
                let changed = [text[byte] ^ 1 << (number % 8)];
                vault.write_all_at(&changed, place + byte as u64)?;
            }
            Harm::Poison => match vault::poison(&vault, place & !0xfff) {
                // The kernel logs "already truncated LRU page: Ignored".
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return Ok(false),
                poisoned => poisoned?,
            },
        }
        Ok(true)
    }

    /// Has the host verify the checksums of the domain's sealed pages.
    ///
    /// # Errors
    ///
    /// When the command fails, or some pages cannot be repaired.
    pub fn scrub(&self, domain: &str) -> io::Result<()> {
        let scrubbed = self
            .control
            .show(&["scrub", "--app", "ledger", "--domain", domain]);
        scrubbed.map(drop).map_err(io::Error::other)
    }

    /// The damage that the host has found so far.
    ///
    /// # Errors
    ///
    /// When the command fails or lacks the counts.
    pub fn scrubs(&self) -> io::Result<Scrubs> {
        let status = self.status()?;
        let count = |name: &str| {
            let count = status["recovery"]["scrub"][name].as_u64();
            count.ok_or_else(|| io::Error::other(format!("vmsrs status has no scrub.{name}")))
        };
        Ok(Scrubs {
            repaired: count("repaired")?,
            mirrored: count("mirrored")?,
            poisoned: incidents(&status, &["poison"])
                .ok_or_else(|| io::Error::other("vmsrs status has no counts of incidents"))?,
        })
    }

    /// Incidents of failed requests that the host has counted so far, without those that ended with their thread or
    /// process, which get no answer.
    ///
    /// # Errors
    ///
    /// When the command fails or lacks the counts.
    pub fn failed_requests(&self) -> io::Result<u64> {
        incidents(&self.status()?, &FAILED_REQUESTS)
            .ok_or_else(|| io::Error::other("vmsrs status has no counts of incidents"))
    }

    fn status(&self) -> io::Result<Value> {
        self.control.status().map_err(io::Error::other)
    }

    /// Has the supervisor kill the server's process `pid`; returns whether it still existed.
    ///
    /// # Errors
    ///
    /// When the supervisor does not answer.
    pub fn end_process(&self, pid: u32) -> io::Result<bool> {
        let limit = patience::scaled(SUPERVISOR_LIMIT);
        let start = Instant::now();
        loop {
            match self.ask_supervisor(pid) {
                Ok(answer) if answer == "ended" => return Ok(true),
                Ok(answer) if answer == "gone" => return Ok(false),
                Ok(answer) if start.elapsed() > limit => {
                    return Err(io::Error::other(format!("unexpected answer {answer:?}")));
                }
                Err(error) if start.elapsed() > limit => return Err(error),
                // It does not listen between two connections.
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn ask_supervisor(&self, pid: u32) -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.supervisor, SUPERVISOR_TIMEOUT)?;
        stream.set_read_timeout(Some(SUPERVISOR_TIMEOUT))?;
        stream.write_all(format!("{pid}\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.trim_end().to_owned())
    }
}

/// The number of incidents of these kinds.
fn incidents(status: &Value, kinds: &[&str]) -> Option<u64> {
    let counts = status["recovery"]["incidents"].as_array()?;
    let of_kinds = counts.iter().filter(|count| {
        let what = count["what"].as_str();
        what.is_some_and(|what| kinds.contains(&what))
    });
    of_kinds.map(|count| count["count"].as_u64()).sum()
}

/// The offsets of blocks that start with `text`.
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

/// The next range of the file with data, from `from` on.
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
    use std::fs::{self, OpenOptions};

    use super::*;

    #[test]
    fn corrupt_frame_is_noticed_by_the_hosts_counts() {
        let counts = |repaired, mirrored, poisoned| Scrubs {
            repaired,
            mirrored,
            poisoned,
        };
        let found = |after: Scrubs| after.since(counts(3, 7, 1)).detector();
        assert_eq!(found(counts(3, 7, 1)), None);
        assert_eq!(found(counts(4, 7, 1)), Some("checksum"));
        assert_eq!(found(counts(3, 8, 1)), Some("check of the mirror"));
        assert_eq!(found(counts(4, 7, 2)), Some("poisoned memory"));
    }

    #[test]
    fn only_incidents_of_failed_requests_are_counted() {
        let status = serde_json::json!({"recovery": {"incidents": [
            {"what": "memory", "count": 5},
            {"what": "double-free", "count": 2},
            {"what": "sealed-write", "count": 7},
            {"what": "process-death", "count": 1},
        ]}});
        assert_eq!(incidents(&status, &FAILED_REQUESTS), Some(7));
        assert_eq!(incidents(&serde_json::json!({}), &FAILED_REQUESTS), None);
    }

    #[test]
    fn text_is_found_at_block_starts_across_holes() {
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
