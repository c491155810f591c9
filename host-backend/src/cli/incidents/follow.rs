//! `vmsrs incidents --follow`: incidents as they happen.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context;

use super::journal::Journal;
use super::{list, program};
use crate::cli::status::unexpected;
use crate::cli::text::json_line;
use crate::cli::{Exit, Failure};
use crate::control::{Client, IncidentSummary, Request, Response};

/// Time between two looks at a VM.
const INTERVAL: Duration = Duration::from_millis(500);

/// What is done with each incident.
#[derive(Debug)]
pub(super) struct Sinks {
    /// Lines of JSON instead of text, on standard output.
    pub(super) json: bool,
    /// The journal instead of standard output.
    pub(super) journal: Option<Journal>,
    /// A program that is run besides, for new ones.
    pub(super) program: Option<PathBuf>,
}

/// Passes on the incidents that are kept, and then each new one, until the VM ends or the reader goes away. Journal and program
/// get only new ones.
pub(super) fn follow(client: &mut Client, mut sinks: Sinks) -> Result<Exit, Failure> {
    let mut seen = Seen::default();
    let mut counted = None;
    if !sinks.begin()? {
        return Ok(Exit::Ok);
    }
    loop {
        // A count is asked for more cheaply than the list.
        let Response::Status(status) = client.ask(Request::Status {})? else {
            return Err(unexpected());
        };
        let count = status.recovery.all_incidents();
        if counted != Some(count) {
            let Response::Incidents(list) = client.ask(Request::Incidents {})? else {
                return Err(unexpected());
            };
            for incident in seen.add(&list) {
                if !sinks.pass(&status.name, incident, counted.is_some())? {
                    return Ok(Exit::Ok);
                }
            }
            counted = Some(count);
        }
        sinks.idle(&status.name)?;
        sleep(INTERVAL);
    }
}

impl Sinks {
    /// Writes the head of the list. False if nobody reads it.
    fn begin(&self) -> Result<bool, Failure> {
        if self.json || self.journal.is_some() {
            return Ok(true);
        }
        let head = list::line(list::HEAD.map(str::to_owned));
        Ok(print(head.as_bytes())?)
    }

    /// Passes an incident on. False if nobody reads any longer.
    fn pass(
        &mut self,
        vm: &str,
        incident: &IncidentSummary,
        is_new: bool,
    ) -> Result<bool, Failure> {
        if let Some(program) = self.program.as_deref().filter(|_| is_new) {
            program::run(program, vm, incident)
                .with_context(|| {
                    let program = program.display();
                    format!("{program} cannot be run: give another --on-incident")
                })
                .map_err(|error| Failure::new(Exit::Usage, error))?;
        }
        if let Some(journal) = &mut self.journal {
            if is_new {
                journal.add(vm, incident).map_err(lost)?;
            }
            return Ok(true);
        }
        let line = match self.json {
            true => json_line(incident)?,
            false => list::line(list::row(incident)).into_bytes(),
        };
        Ok(print(&line)?)
    }

    /// Nothing has happened for a while.
    fn idle(&mut self, vm: &str) -> Result<(), Failure> {
        match &mut self.journal {
            Some(journal) => journal.close_window(vm).map_err(lost),
            None => Ok(()),
        }
    }
}

/// The journal has gone.
fn lost(error: io::Error) -> Failure {
    let error =
        anyhow::Error::new(error).context("the journal takes no entries: start this command again");
    Failure::new(Exit::Failure, error)
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
    fn a_program_is_run_for_new_incidents_alone() {
        let mut sinks = Sinks {
            json: false,
            journal: None,
            program: Some("/no/such/program".into()),
        };
        let incident = sample::view().detail.summary;
        assert!(sinks.pass("web", &incident, false).unwrap());
        let failure = sinks.pass("web", &incident, true).unwrap_err();
        assert!(
            failure.to_string().contains("give another --on-incident"),
            "{failure}"
        );
    }

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
