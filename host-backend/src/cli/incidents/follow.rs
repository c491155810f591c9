//! `vmsrs incidents --follow`: incidents as they happen.

use std::collections::HashSet;
use std::io::{self, Write};
use std::thread::sleep;
use std::time::Duration;

use super::list;
use crate::cli::status::unexpected;
use crate::cli::text::json_line;
use crate::cli::{Exit, Failure};
use crate::control::{Client, IncidentSummary, Request, Response};

/// Time between two looks at a VM.
const INTERVAL: Duration = Duration::from_millis(500);

/// Prints the incidents that are kept, and then each new one, until the VM ends or the reader goes away.
pub(super) fn follow(client: &mut Client, json: bool) -> Result<Exit, Failure> {
    let mut seen = Seen::default();
    let mut counted = None;
    let head = list::line(list::HEAD.map(str::to_owned));
    if !json && !print(head.as_bytes())? {
        return Ok(Exit::Ok);
    }
    loop {
        // A count is asked for more cheaply than the list.
        let count = match client.ask(Request::Status {})? {
            Response::Status(status) => (status.recovery.incidents.iter())
                .map(|kind| kind.count)
                .sum::<u64>(),
            _ => return Err(unexpected()),
        };
        if counted.replace(count) != Some(count) {
            let Response::Incidents(list) = client.ask(Request::Incidents {})? else {
                return Err(unexpected());
            };
            for incident in seen.add(&list) {
                let line = if json {
                    json_line(incident)?
                } else {
                    list::line(list::row(incident)).into_bytes()
                };
                if !print(&line)? {
                    return Ok(Exit::Ok);
                }
            }
        }
        sleep(INTERVAL);
    }
}

/// Numbers of incidents that were printed and are still kept.
#[derive(Debug, Default)]
struct Seen(HashSet<u64>);

impl Seen {
    /// Those of a list that were not in the lists before.
    fn add<'a>(&mut self, list: &'a [IncidentSummary]) -> Vec<&'a IncidentSummary> {
        let is_new = |incident: &&IncidentSummary| !self.0.contains(&incident.number);
        let fresh = list.iter().filter(is_new).collect();
        self.0 = list.iter().map(|incident| incident.number).collect();
        fresh
    }
}

/// Writes to standard output at once. False if nobody reads it any longer.
fn print(line: &[u8]) -> io::Result<bool> {
    let mut output = io::stdout().lock();
    match output.write_all(line).and_then(|()| output.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn each_incident_comes_once() {
        let incident = |number| IncidentSummary {
            number,
            ..sample::view().detail.summary
        };
        let mut seen = Seen::default();
        let mut add = |numbers: &[u64]| -> Vec<u64> {
            let list: Vec<_> = numbers.iter().map(|&number| incident(number)).collect();
            seen.add(&list).iter().map(|new| new.number).collect()
        };
        assert!(add(&[]).is_empty());
        assert_eq!(add(&[1, 2]), [1, 2]);
        assert_eq!(add(&[1, 2, 3]), [3]);
        // The host's numbers are even, and come between the guest's; the oldest are no longer kept.
        assert_eq!(add(&[2, 3, 4, 5]), [4, 5]);
        assert!(add(&[4, 5]).is_empty());
    }
}
