//! `vmsrs domains`: the domains of a running VM.

use super::status::unexpected;
use super::text::{printable, table, write_json, write_text};
use super::{Exit, Failure, Target};
use crate::control::{DomainFacts, Request, Response};

/// List the domains of a running VM: their keys, their pages, and what last failed in them
///
/// Of deleted domains nothing is known any more. A domain without pages was opened, and nothing was committed in it yet.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vmsrs domains
  vmsrs domains ledger --name web
  vmsrs domains --json | jq 'map(select(.damaged_pages > 0))'

Exit codes: 0 success, 2 invalid command line, 4 no VM reachable, 8 no such app.")]
pub(super) struct Arguments {
    /// Name of an app [default: all apps]
    app: Option<String>,
    #[command(flatten)]
    target: Target,
    /// Write one line of JSON (docs/reference-cli.md describes it)
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut client = arguments.target.connect()?;
    let mut domains = Vec::new();
    let mut from = None;
    loop {
        let app = arguments.app.clone();
        let Response::Domains(part) = client.ask(Request::Domains { app, from })? else {
            return Err(unexpected());
        };
        domains.extend(part.domains);
        from = part.next;
        if from.is_none() {
            break;
        }
    }
    if arguments.json {
        write_json(&domains)?;
    } else {
        write_text(&describe(&domains))?;
    }
    Ok(Exit::Ok)
}

const HEAD: [&str; 7] = [
    "APP",
    "DOMAIN",
    "PAGES",
    "SEALED",
    "MIRROR",
    "LOST",
    "LAST INCIDENT",
];

fn describe(domains: &[DomainFacts]) -> String {
    if domains.is_empty() {
        return "no domains\n".to_owned();
    }
    let rows: Vec<_> = domains.iter().map(row).collect();
    table(HEAD, &rows)
}

fn row(domain: &DomainFacts) -> [String; 7] {
    let mirror = if domain.mirrored { "yes" } else { "-" };
    let last = domain.last_incident;
    [
        printable(&domain.app),
        printable(&domain.key),
        domain.pages.to_string(),
        domain.sealed_pages.to_string(),
        mirror.to_owned(),
        domain.damaged_pages.to_string(),
        last.map_or_else(|| "-".to_owned(), |number| number.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_a_table() {
        assert_eq!(describe(&[]), "no domains\n");
        let domain = DomainFacts {
            app: "ledger".into(),
            key: "user-7\x1b".into(),
            pages: 16,
            sealed_pages: 3,
            mirrored: true,
            damaged_pages: 0,
            last_incident: Some(7),
        };
        let other = DomainFacts {
            last_incident: None,
            mirrored: false,
            ..domain.clone()
        };
        let text = describe(&[domain, other]);
        let lines: Vec<Vec<_>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[1],
            ["ledger", "user-7\u{fffd}", "16", "3", "yes", "0", "7"]
        );
        assert_eq!(lines[2][4..], ["-", "0", "-"]);
    }
}
