//! The host's side of the virtual machine: memory of its that goes wrong.

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
use vmsrs_bed::{patience, window};

/// Kinds of incidents by which a request fails and its process goes on.
const FAILED_REQUESTS: [&str; 17] = [
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
    "no-frames",
    "invariant",
    "foreign-draft",
    "damaged",
];
/// Blocks of a domain's heap begin at multiples of this.
const GRAIN: usize = 16;

/// How long the supervisor may take to answer once.
const SUPERVISOR_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may take in all.
const SUPERVISOR_LIMIT: Duration = Duration::from_secs(600);

/// How a frame goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// A bit flips, and nobody says so.
    Flip,
    /// Its memory is broken, and the hardware says so.
    Poison,
}

/// What the host has found wrong in sealed pages, by its checks and by accesses of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scrubs {
    /// Pages that were wrong and taken from the mirror.
    pub repaired: u64,
    /// Copies of the mirror that were missing or wrong and made anew.
    pub mirrored: u64,
    /// Incidents of pages whose memory was broken.
    pub poisoned: u64,
}

impl Scrubs {
    /// What was found since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            repaired: self.repaired.saturating_sub(before.repaired),
            mirrored: self.mirrored.saturating_sub(before.mirrored),
            poisoned: self.poisoned.saturating_sub(before.poisoned),
        }
    }

    /// What noticed that a frame had gone wrong; nothing if nobody did.
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

/// A virtual machine that this process may look into.
#[derive(Debug, Clone)]
pub struct Host {
    /// Number of the process of `vmsrs run`.
    pub process: u32,
    /// Its control socket.
    pub control: Control,
    /// The log of the guest's console.
    pub console: PathBuf,
    /// The supervisor in the guest: it ends a process whose number it is told.
    pub supervisor: SocketAddr,
}

impl Host {
    /// Lets one of the frames go wrong that have `text` at the begin of a block, past every protection;
    /// `number` says which of them, and which bit flips. False if there is none, or if the host gave its memory back
    /// at this very moment (a frame that was retired): nothing is broken then.
    ///
    /// # Errors
    ///
    /// When the window cannot be read or written, or the host's kernel does not take memory for broken.
    pub fn harm(&self, harm: Harm, text: &[u8], number: u64) -> io::Result<bool> {
        let window = window::open(self.process)?;
        let places = find(&window, text)?;
        if places.is_empty() {
            return Ok(false);
        }
        let number = usize::try_from(number >> 8).unwrap_or(usize::MAX >> 1);
        let place = places[number % places.len()];
        match harm {
            Harm::Flip => {
                let byte = number % text.len();
                let changed = [text[byte] ^ 1 << (number % 8)];
                window.write_all_at(&changed, place + byte as u64)?;
            }
            Harm::Poison => match window::poison(&window, place & !0xfff) {
                // "already truncated LRU page: Ignored", says the kernel.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return Ok(false),
                poisoned => poisoned?,
            },
        }
        Ok(true)
    }

    /// Has the host hold the domain's sealed pages against their checksums.
    ///
    /// # Errors
    ///
    /// When some of them cannot be repaired, or the command fails.
    pub fn scrub(&self, domain: &str) -> io::Result<()> {
        let scrubbed = self
            .control
            .show(&["scrub", "--app", "ledger", "--domain", domain]);
        scrubbed.map(drop).map_err(io::Error::other)
    }

    /// What the host has found so far by checking sealed pages.
    ///
    /// # Errors
    ///
    /// When the command fails, or says nothing about it.
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

    /// Incidents of failed requests that the host has counted so far, without those that ended with
    /// their thread or process, of which no answer can tell.
    ///
    /// # Errors
    ///
    /// When the command fails, or says nothing about it.
    pub fn failed_requests(&self) -> io::Result<u64> {
        incidents(&self.status()?, &FAILED_REQUESTS)
            .ok_or_else(|| io::Error::other("vmsrs status has no counts of incidents"))
    }

    fn status(&self) -> io::Result<Value> {
        self.control.status().map_err(io::Error::other)
    }

    /// Has the supervisor end the server's process `pid`; whether it was still there.
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
                    return Err(io::Error::other(format!("it answers {answer:?}")));
                }
                Err(error) if start.elapsed() > limit => return Err(error),
                // It takes one connection after the other, and is not there between them.
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

/// How many incidents of these kinds there were.
fn incidents(status: &Value, kinds: &[&str]) -> Option<u64> {
    let counts = status["recovery"]["incidents"].as_array()?;
    let of_kinds = counts.iter().filter(|count| {
        let what = count["what"].as_str();
        what.is_some_and(|what| kinds.contains(&what))
    });
    of_kinds.map(|count| count["count"].as_u64()).sum()
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
    use std::fs::{self, OpenOptions};

    use super::*;

    #[test]
    fn a_frame_that_went_wrong_is_noticed_only_if_the_hosts_counts_say_so() {
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
    fn incidents_of_failed_requests_are_counted_and_no_others() {
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
