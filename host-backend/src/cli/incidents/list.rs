//! The list of incidents as a table.

use serde::Serialize;

use crate::cli::text::{self, address, printable, printable_or_dash, table};
use crate::control::IncidentSummary;

/// The JSON name of a value of an enumeration.
pub(super) fn json_name(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => "?".to_owned(),
    }
}

pub(super) const HEAD: [&str; 7] = [
    "ID",
    "TIME (UTC)",
    "KIND",
    "OUTCOME",
    "APP",
    "DOMAIN",
    "ADDRESS",
];

pub(super) fn row(incident: &IncidentSummary) -> [String; 7] {
    [
        incident.number.to_string(),
        text::time(incident.at_ms),
        printable(&incident.kind),
        json_name(incident.outcome),
        printable_or_dash(incident.app.as_deref()),
        printable_or_dash(incident.domain.as_deref()),
        address(incident.address),
    ]
}

/// Widths of the columns where the rows to come are not known.
const WIDTHS: [usize; 7] = [6, 23, 15, 9, 12, 16, 0];

/// A row by itself.
pub(super) fn line(cells: [String; 7]) -> String {
    let columns = cells.iter().zip(WIDTHS);
    let columns: Vec<_> = columns
        .map(|(cell, width)| format!("{cell:width$}"))
        .collect();
    columns.join("  ").trim_end().to_owned() + "\n"
}

pub(super) fn describe(list: &[IncidentSummary]) -> String {
    if list.is_empty() {
        return "no incidents\n".to_owned();
    }
    let rows: Vec<_> = list.iter().map(row).collect();
    table(HEAD, &rows)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn the_list_is_a_table() {
        assert_eq!(describe(&[]), "no incidents\n");
        let mut summary = sample::view().detail.summary;
        summary.domain = None;
        let text = describe(&[summary]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].find("KIND"), lines[1].find("foreign-write"));
        assert!(lines[1].ends_with("recovered  ledger  -       0x110000004004"));
    }

    #[test]
    fn rows_by_themselves_stand_in_columns() {
        let head = line(HEAD.map(str::to_owned));
        let incident = line(row(&sample::view().detail.summary));
        for (name, value) in [("KIND", "foreign-write"), ("ADDRESS", "0x110000004004")] {
            assert_eq!(head.find(name), incident.find(value), "{head}{incident}");
        }
    }
}
