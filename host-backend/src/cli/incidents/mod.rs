//! `vmsrs incidents`: what failed in a VM.

mod changes;
mod detail;
mod follow;
mod list;
mod page;
mod view;

#[cfg(test)]
mod sample;

use std::fs;
use std::path::PathBuf;

use anyhow::Context;

use self::view::IncidentView;
use super::status::unexpected;
use super::text::{write_json, write_text};
use super::{Exit, Failure, Target};
use crate::control::{Request, Response};
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
        return follow::follow(&mut client, arguments.json);
    }
    match arguments.id {
        None => match client.ask(Request::Incidents {})? {
            Response::Incidents(list) if arguments.json => write_json(&list)?,
            Response::Incidents(list) => match &arguments.html {
                Some(_) => write_page(arguments, &page::list(&list))?,
                None => write_text(&list::describe(&list))?,
            },
            _ => return Err(unexpected()),
        },
        Some(id) => match client.ask(Request::Incident { id })? {
            Response::Incident(detail) => {
                let view = IncidentView::new(*detail, &files);
                if arguments.json {
                    write_json(&view)?;
                } else if arguments.html.is_some() {
                    write_page(arguments, &page::incident(&view))?;
                } else {
                    write_text(&detail::describe(&view, arguments.full))?;
                }
            }
            _ => return Err(unexpected()),
        },
    }
    Ok(Exit::Ok)
}

fn write_page(arguments: &Arguments, page: &str) -> Result<(), Failure> {
    let Some(path) = &arguments.html else {
        return Ok(());
    };
    if path.as_os_str() == "-" {
        return Ok(write_text(page)?);
    }
    fs::write(path, page)
        .with_context(|| format!("cannot write {}: give another --html", path.display()))
        .map_err(|error| Failure::new(Exit::Usage, error))
}
