//! A program of the operator's that is run for each incident.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::list::json_name;
use crate::cli::text::json_line;
use crate::control::IncidentSummary;
use crate::output::say;

/// Runs the program, with the incident as a line of JSON on its standard input, and waits until it has ended.
///
/// # Errors
///
/// Fails when it cannot be started. That it fails itself is said on standard error.
pub(super) fn run(program: &Path, vm: &str, incident: &IncidentSummary) -> io::Result<()> {
    let mut child = Command::new(program)
        .env("VMSRS_VM", vm)
        .env("VMSRS_INCIDENT", incident.number.to_string())
        .env("VMSRS_KIND", &incident.kind)
        .env("VMSRS_OUTCOME", json_name(incident.outcome))
        .stdin(Stdio::piped())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        match input.write_all(&json_line(incident)?) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            // It need not read.
            _ => {}
        }
    }
    let status = child.wait()?;
    if !status.success() {
        let (program, number) = (program.display(), incident.number);
        say(format_args!(
            "{program} has failed for incident {number}: {status}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::super::sample;
    use super::*;

    #[test]
    fn a_program_gets_the_incident() {
        let place = tempfile::tempdir().unwrap();
        let program = place.path().join("note");
        let text = "#!/bin/sh\n{ echo $VMSRS_VM $VMSRS_INCIDENT $VMSRS_KIND $VMSRS_OUTCOME; cat; } > \"${0%/*}/noted\"\n";
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let incident = sample::view().detail.summary;
        run(&program, "web", &incident).unwrap();
        let noted = fs::read_to_string(place.path().join("noted")).unwrap();
        let (variables, json) = noted.split_once('\n').unwrap();
        assert_eq!(variables, "web 7 foreign-write recovered");
        assert_eq!(
            serde_json::from_str::<IncidentSummary>(json).unwrap(),
            incident
        );
    }

    #[test]
    fn a_program_that_reads_nothing_or_fails_changes_nothing() {
        let incident = sample::view().detail.summary;
        run(Path::new("/bin/false"), "web", &incident).unwrap();
        run(Path::new("/nonexistent/program"), "web", &incident).unwrap_err();
    }
}
