//! Incidents as entries of systemd's journal, in its native protocol
//! (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use super::list::json_name;
use crate::cli::text::printable;
use crate::control::IncidentSummary;

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// How long an entry waits for a journal that does not read.
const PATIENCE: Duration = Duration::from_secs(1);

/// `MESSAGE_ID` of a request that has failed. The catalog (`packaging/systemd/vmsrs.catalog`) describes each.
const REQUEST: &str = "dccc04cb1f5b226705c161b9de9e6698";
/// `MESSAGE_ID` of an incident that the host has noted by itself.
const HOST: &str = "d24fc5e28c8dd6619e6e0ace3b597553";
/// `MESSAGE_ID` of incidents that have no entries, since there were too many.
const SKIPPED: &str = "59ee489ef2300d430617bbdf3a3bf724";

/// Priorities of `syslog(3)`.
const ERROR: u8 = 3;
const WARNING: u8 = 4;

/// Most incidents with entries of their own in each [`WINDOW`].
const ENTRIES_MAX: u64 = 100;
const WINDOW: Duration = Duration::from_secs(60);

/// The journal of this machine.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    budget: Budget,
}

impl Journal {
    /// Connects.
    ///
    /// # Errors
    ///
    /// Fails when no journal listens.
    pub(super) fn connect() -> io::Result<Self> {
        Self::at(Path::new(SOCKET))
    }

    fn at(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.connect(path)?;
        Ok(Self {
            socket,
            budget: Budget::default(),
        })
    }

    /// Writes the entry of an incident of the VM with that name, unless there were too many lately.
    pub(super) fn add(&mut self, vm: &str, incident: &IncidentSummary) -> io::Result<()> {
        self.close_window(vm)?;
        if self.budget.take(Instant::now()) {
            self.socket.send(&entry(&incident_fields(vm, incident)))?;
        }
        Ok(())
    }

    /// Tells how many incidents had no entries, once no more of them count.
    pub(super) fn close_window(&mut self, vm: &str) -> io::Result<()> {
        match self.budget.skipped(Instant::now()) {
            0 => Ok(()),
            count => self
                .socket
                .send(&entry(&skipped_fields(vm, count)))
                .map(drop),
        }
    }
}

/// How many more entries may be written.
#[derive(Debug, Default)]
struct Budget {
    window: Option<Instant>,
    written: u64,
    skipped: u64,
}

impl Budget {
    /// Whether there may be one more entry; it counts.
    fn take(&mut self, now: Instant) -> bool {
        self.window.get_or_insert(now);
        let fits = self.written < ENTRIES_MAX;
        *(if fits {
            &mut self.written
        } else {
            &mut self.skipped
        }) += 1;
        fits
    }

    /// Incidents without entries in a window that is over, once.
    fn skipped(&mut self, now: Instant) -> u64 {
        let is_over = |begun: Instant| now.duration_since(begun) >= WINDOW;
        if !self.window.is_some_and(is_over) {
            return 0;
        }
        std::mem::take(self).skipped
    }
}

type Fields = Vec<(&'static str, String)>;

fn incident_fields(vm: &str, incident: &IncidentSummary) -> Fields {
    let number = incident.number;
    let kind = printable(&incident.kind);
    let outcome = json_name(incident.outcome);
    // Even numbers are the host's.
    let is_request = number % 2 == 1;
    let what = match is_request {
        true => format!("a request of VM {vm} has failed: {kind} ({outcome})"),
        false => format!("VM {vm}: {kind} ({outcome})"),
    };
    let (id, priority) = match is_request {
        true => (REQUEST, WARNING),
        false => (HOST, ERROR),
    };
    let mut fields = vec![
        (
            "MESSAGE",
            format!("{what}; `vmsrs incidents {number} --name {vm}` shows it"),
        ),
        ("MESSAGE_ID", id.to_owned()),
        ("PRIORITY", priority.to_string()),
        ("SYSLOG_IDENTIFIER", "vmsrs".to_owned()),
        ("VMSRS_VM", vm.to_owned()),
        ("VMSRS_INCIDENT", number.to_string()),
        ("VMSRS_KIND", kind),
        ("VMSRS_OUTCOME", outcome),
        ("VMSRS_AT_MS", incident.at_ms.to_string()),
    ];
    let optional = [
        ("VMSRS_APP", incident.app.clone()),
        ("VMSRS_DOMAIN", incident.domain.clone()),
        (
            "VMSRS_ADDRESS",
            incident.address.map(|address| format!("{address:#x}")),
        ),
    ];
    fields.extend(
        optional
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    fields
}

fn skipped_fields(vm: &str, count: u64) -> Fields {
    let message = format!(
        "{count} more incidents of VM {vm} within a minute have no entries; `vmsrs incidents --name {vm}` lists the newest"
    );
    vec![
        ("MESSAGE", message),
        ("MESSAGE_ID", SKIPPED.to_owned()),
        ("PRIORITY", WARNING.to_string()),
        ("SYSLOG_IDENTIFIER", "vmsrs".to_owned()),
        ("VMSRS_VM", vm.to_owned()),
        ("VMSRS_SKIPPED", count.to_string()),
    ]
}

/// An entry. Each value comes with its length, since the guest has chosen some, and a line break in one would begin another field.
fn entry(fields: &Fields) -> Vec<u8> {
    let mut entry = Vec::new();
    for (name, value) in fields {
        entry.extend_from_slice(name.as_bytes());
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
        entry.extend_from_slice(value.as_bytes());
        entry.push(b'\n');
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    /// The fields of an entry.
    fn parse(mut entry: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while !entry.is_empty() {
            let end = entry.iter().position(|&byte| byte == b'\n').unwrap();
            let (name, rest) = (&entry[..end], &entry[end + 1..]);
            let (length, rest) = rest.split_first_chunk().unwrap();
            let (value, rest) = rest.split_at(u64::from_le_bytes(*length) as usize);
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            fields.push((text(name), text(value)));
            entry = rest.strip_prefix(b"\n").unwrap();
        }
        fields
    }

    #[test]
    fn an_incident_is_one_entry_with_its_fields() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("socket");
        let receiver = UnixDatagram::bind(&path).unwrap();
        let mut journal = Journal::at(&path).unwrap();
        let mut incident = sample::view().detail.summary;
        incident.domain = Some("user\nPRIORITY=0".into());
        journal.add("web", &incident).unwrap();
        let mut buffer = [0; 4096];
        let length = receiver.recv(&mut buffer).unwrap();
        let fields = parse(&buffer[..length]);
        let field = |name: &str| {
            let mut found = fields.iter().filter(|(other, _)| other == name);
            let value = &found.next().unwrap().1;
            assert_eq!(found.next(), None);
            value.as_str()
        };
        assert_eq!(field("VMSRS_KIND"), "foreign-write");
        assert_eq!(field("VMSRS_DOMAIN"), "user\nPRIORITY=0");
        assert_eq!((field("PRIORITY"), field("MESSAGE_ID")), ("4", REQUEST));
        assert_eq!(
            field("MESSAGE"),
            "a request of VM web has failed: foreign-write (recovered); `vmsrs incidents 7 --name web` shows it"
        );
    }

    #[test]
    fn entries_are_limited_in_number_and_the_others_counted() {
        let start = Instant::now();
        let mut budget = Budget::default();
        let written = (0..ENTRIES_MAX + 7).filter(|_| budget.take(start)).count();
        assert_eq!(written as u64, ENTRIES_MAX);
        assert_eq!(budget.skipped(start), 0);
        assert_eq!(budget.skipped(start + WINDOW), 7);
        assert_eq!(budget.skipped(start + 2 * WINDOW), 0);
        assert!(budget.take(start + 2 * WINDOW));
    }

    #[test]
    fn the_catalog_describes_each_message() {
        let catalog = include_str!("../../../../packaging/systemd/vmsrs.catalog");
        for id in [REQUEST, HOST, SKIPPED] {
            assert!(catalog.contains(&format!("-- {id}\nSubject: ")), "{id}");
        }
    }
}
