//! `vmsrs incidents`: what failed in a VM.

mod changes;
mod detail;
mod follow;
mod journal;
mod list;
mod page;
mod program;
mod view;

#[cfg(test)]
mod sample;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;

use self::follow::Sinks;
use self::journal::Journal;
use self::view::IncidentView;
use super::status::unexpected;
use super::text::{write_json, write_text};
use super::{Exit, Failure, Target};
use crate::control::{Request, Response};
use crate::sandbox::{self, Files, Role};
use crate::symbols::SymbolFiles;

/// List what failed in a running VM, or show one incident in full
///
/// Without an ID all incidents are listed, the newest last. Odd numbers are failed requests, reported
/// by the guest. Even numbers are the host's own: writes stopped by the second-level page table,
/// crashes and resets of the guest's kernel that took requests with them, and broken sealed pages.
///
/// Functions and lines come from the server's files with symbols, matched by build ID: files anywhere
/// in the folders given with --symbols, or at the guest's path below them, and files under
/// /usr/lib/debug/.build-id. Guest-supplied paths are never opened.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vmsrs incidents
  vmsrs incidents 7 --symbols build/
  vmsrs incidents 7 --symbols build/ --html incident-7.html
  vmsrs incidents --follow --json >> incidents.log
  vmsrs incidents --follow --on-incident /usr/local/bin/page-somebody
  vmsrs incidents --follow --journal --name web
  vmsrs incidents --json | jq '.[] | select(.kind == \"double-free\") | .number'

Exit codes: 0 success, 2 invalid command line, 4 no VM reachable, 8 no such incident.")]
pub(super) struct Arguments {
    /// Number of one incident
    id: Option<u64>,
    #[command(flatten)]
    target: Target,
    /// Folder or file with the server's programs and libraries with symbols; may be repeated
    #[arg(
        long,
        value_name = "FOLDER",
        env = "VMSRS_SYMBOLS",
        value_delimiter = ':'
    )]
    symbols: Vec<PathBuf>,
    /// Show all changed bytes, not only the first, and all frames of the backtrace
    #[arg(long)]
    full: bool,
    /// Go on and print each new incident, until the VM ends; with --json a line of JSON for each
    #[arg(long, conflicts_with_all = ["id", "html"])]
    follow: bool,
    /// Run this program for each new incident, with a line of JSON on its standard input, one at a time
    ///
    /// Its environment has VMSRS_VM, VMSRS_INCIDENT, VMSRS_KIND and VMSRS_OUTCOME.
    #[arg(long, value_name = "PROGRAM", requires = "follow")]
    on_incident: Option<PathBuf>,
    /// Write each new incident to systemd's journal, with fields VMSRS_..., instead of to standard output
    ///
    /// At most 100 in a minute have entries of their own; the others are counted.
    #[arg(long, requires = "follow", conflicts_with = "json")]
    journal: bool,
    /// Write a self-contained HTML page to this file ('-' is standard output)
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    html: Option<PathBuf>,
    /// Write one line of JSON (docs/reference-cli.md describes it)
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    // A folder that is not there is said before anybody is asked.
    let files =
        SymbolFiles::new(&arguments.symbols).map_err(|error| Failure::new(Exit::Usage, error))?;
    let mut client = arguments.target.connect()?;
    if arguments.follow {
        return follow::follow(&mut client, sinks(arguments)?);
    }
    match arguments.id {
        None => match client.ask(Request::Incidents {})? {
            Response::Incidents(list) if arguments.json => write_json(&list)?,
            Response::Incidents(list) => match &arguments.html {
                Some(path) => write_page(open_page(path)?, &page::list(&list))?,
                None => write_text(&list::describe(&list))?,
            },
            _ => return Err(unexpected()),
        },
        Some(id) => match client.ask(Request::Incident { id })? {
            Response::Incident(detail) => {
                let page = arguments.html.as_deref().map(open_page).transpose()?;
                // From here on this process reads what the guest has chosen.
                sandbox::enable(Files {
                    symbols: arguments.symbols.clone(),
                    ..Files::default()
                })
                .map_err(|error| Failure::new(Exit::Machine, error))?;
                sandbox::confine(Role::Symbolizer);
                let view = IncidentView::new(*detail, &files);
                if arguments.json {
                    write_json(&view)?;
                } else if let Some(page) = page {
                    write_page(page, &page::incident(&view))?;
                } else {
                    write_text(&detail::describe(&view, arguments.full))?;
                }
            }
            _ => return Err(unexpected()),
        },
    }
    Ok(Exit::Ok)
}

/// Where incidents go that are followed.
fn sinks(arguments: &Arguments) -> Result<Sinks, Failure> {
    let journal = arguments.journal.then(Journal::connect).transpose();
    let journal = journal
        .context("no journal listens on this machine: leave --journal out")
        .map_err(|error| Failure::new(Exit::Machine, error))?;
    Ok(Sinks {
        json: arguments.json,
        journal,
        program: arguments.on_incident.clone(),
    })
}

/// Opens the file of a page; `None` for standard output.
fn open_page(path: &Path) -> Result<Option<File>, Failure> {
    if path.as_os_str() == "-" {
        return Ok(None);
    }
    File::create(path)
        .map(Some)
        .with_context(|| format!("cannot write {}: give another --html", path.display()))
        .map_err(|error| Failure::new(Exit::Usage, error))
}

fn write_page(file: Option<File>, page: &str) -> Result<(), Failure> {
    match file {
        None => write_text(page)?,
        Some(mut file) => file
            .write_all(page.as_bytes())
            .context("cannot write the page: give another --html")
            .map_err(|error| Failure::new(Exit::Usage, error))?,
    }
    Ok(())
}
