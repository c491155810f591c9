//! `vmsrs scrub`: checks sealed pages of a running VM now.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::status::unexpected;
use super::text::{facts, write_json, write_text};
use super::{Exit, Failure, Target};
use crate::control::{Request, Response};
use crate::engine::ScrubCounts;

/// Check the sealed pages of a running VM now
///
/// Compares sealed pages with their checksums: all of them, or those of one app or domain. A wrong
/// page is repaired from its mirror if its domain has one; otherwise it is lost, and the guest gets an
/// error instead of wrong bytes. The VM keeps running. `vmsrs run --scrub` does the same in the
/// background.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vmsrs scrub
  vmsrs scrub --app ledger --domain user-7
  vmsrs scrub --name web --json | jq .damaged

Exit codes: 0 all pages are intact or repaired, 2 invalid command line, 4 no VM reachable,
8 no such app or domain, 9 the content of some pages is lost.")]
pub(super) struct Arguments {
    /// Only the pages of this app
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// Only the pages of this domain of the app
    #[arg(long, value_name = "KEY", requires = "app")]
    domain: Option<String>,
    #[command(flatten)]
    target: Target,
    /// Write one line of JSON (docs/reference-cli.md describes it)
    #[arg(long)]
    pub(super) json: bool,
}

/// Time after which progress is shown.
const PROGRESS_DELAY: Duration = Duration::from_secs(1);

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut client = arguments.target.connect()?;
    let mut found = ScrubCounts::default();
    let mut progress = Progress::new();
    let mut from = None;
    loop {
        let response = client.ask(Request::Scrub {
            app: arguments.app.clone(),
            domain: arguments.domain.clone(),
            from,
        })?;
        let Response::Scrub(step) = response else {
            return Err(unexpected());
        };
        found.add(step.found);
        progress.show(found.checked, step.pages);
        from = step.next;
        if from.is_none() {
            break;
        }
    }
    progress.end();
    if arguments.json {
        write_json(&found)?;
    } else {
        write_text(&describe(found))?;
    }
    Ok(exit_for(found))
}

fn exit_for(found: ScrubCounts) -> Exit {
    match found.damaged {
        0 => Exit::Ok,
        _ => Exit::Damaged,
    }
}

fn describe(found: ScrubCounts) -> String {
    facts(&[
        ("pages checked", found.checked.to_string()),
        ("repaired from the mirror", found.repaired.to_string()),
        ("copies of the mirror made", found.mirrored.to_string()),
        ("lost", found.damaged.to_string()),
    ])
}

/// A progress line on the terminal, if there is one and the work takes long.
struct Progress {
    start: Instant,
    terminal: bool,
    shown: bool,
}

impl Progress {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            terminal: io::stderr().is_terminal(),
            shown: false,
        }
    }

    fn show(&mut self, checked: u64, pages: u64) {
        if self.terminal && self.start.elapsed() > PROGRESS_DELAY {
            // A terminal that cannot be written misses nothing but this.
            let _ = write!(io::stderr(), "\r{checked} of {pages} pages checked");
            self.shown = true;
        }
    }

    fn end(&self) {
        if self.shown {
            let _ = writeln!(io::stderr());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_pages_alone_are_exit_code_9() {
        let found = ScrubCounts {
            checked: 70,
            repaired: 2,
            mirrored: 1,
            damaged: 0,
        };
        assert_eq!(exit_for(found) as u8, 0);
        let found = ScrubCounts {
            damaged: 1,
            ..found
        };
        assert_eq!(exit_for(found) as u8, 9);
    }

    #[test]
    fn the_text_says_what_was_found() {
        let text = describe(ScrubCounts {
            checked: 70,
            repaired: 2,
            mirrored: 1,
            damaged: 3,
        });
        for part in ["pages checked", "70", "repaired from the mirror", "lost"] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }
}
