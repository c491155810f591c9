//! The table that a person wants to see.

use std::fmt::Write;

use crate::outcome::Outcome;

/// The outcome of the load in words and columns.
pub fn table(outcome: &Outcome) -> String {
    let mut text = String::new();
    let _ = write_table(&mut text, outcome);
    text
}

fn write_table(text: &mut String, outcome: &Outcome) -> std::fmt::Result {
    let head = [
        "kind of bug",
        "sent",
        "recovered",
        "detected by",
        "recovery p50",
        "p99",
        "served again",
    ];
    let rows: Vec<[String; 7]> = outcome
        .kinds
        .iter()
        .map(|kind| {
            [
                kind.kind.clone(),
                kind.count.to_string(),
                kind.recovered.to_string(),
                kind.detected_by.clone(),
                microseconds(kind.recovery_ns_p50),
                microseconds(kind.recovery_ns_p99),
                microseconds(kind.served_again_ns_p50),
            ]
        })
        .collect();
    let mut widths = head.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; 7]| {
        let cells: Vec<String> = (cells.iter().zip(widths).enumerate())
            .map(|(column, (cell, width))| match column {
                0 | 3 => format!("{cell:width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        format!("  {}", cells.join("  ").trim_end())
    };
    writeln!(text, "{}", line(head))?;
    writeln!(text, "  {}", "-".repeat(widths.iter().sum::<usize>() + 12))?;
    for row in &rows {
        writeln!(text, "{}", line(row.each_ref().map(String::as_str)))?;
    }
    writeln!(text)?;
    if let Some(kind) = outcome.kinds.iter().find(|kind| !kind.answer.is_empty()) {
        writeln!(text, "  what the guilty client gets       {}", kind.answer)?;
    }
    let facts = [
        (
            "users, connections",
            format!("{}, {}", outcome.users, outcome.connections),
        ),
        (
            "requests, fatal ones, recovered",
            format!(
                "{}, {}, {}",
                outcome.requests, outcome.fatal_requests, outcome.recovered
            ),
        ),
        (
            "others in flight at a fatal one",
            format!(
                "median {}, least {}",
                outcome.others_in_flight_p50, outcome.others_in_flight_min
            ),
        ),
        (
            "other requests that failed",
            (outcome.innocent_requests_failed + outcome.innocent_answers_wrong).to_string(),
        ),
        (
            "bytes changed in users' state",
            format!(
                "{} of {} compared",
                outcome.innocent_bytes_changed, outcome.bytes_compared
            ),
        ),
        (
            "restarts of server and guest",
            format!("{}, {}", outcome.server_restarts, outcome.guest_restarts),
        ),
        (
            "time",
            format!(
                "{:.1} s, {:.0} requests a second",
                outcome.seconds,
                outcome.requests as f64 / outcome.seconds.max(0.001)
            ),
        ),
    ];
    for (name, value) in facts {
        writeln!(text, "  {name:<32}  {value}")?;
    }
    if let Some(death) = &outcome.died {
        writeln!(
            text,
            "  the server died                   at request {} ({})",
            death.at_request, death.cause
        )?;
    }
    Ok(())
}

fn microseconds(nanoseconds: Option<u64>) -> String {
    match nanoseconds {
        None => "-".to_owned(),
        Some(ns) if ns >= 10_000_000 => format!("{} ms", ns / 1_000_000),
        Some(ns) => format!("{} µs", ns / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::KindOutcome;

    #[test]
    fn columns_line_up() {
        let kind = |name: &str, count| KindOutcome {
            kind: name.to_owned(),
            count,
            recovered: count,
            detected_by: "SIGSEGV".to_owned(),
            recovery_ns_p50: Some(12_345),
            recovery_ns_p99: None,
            served_again_ns_p50: Some(20_000_000),
            answer: "ERR memory incident=1 recovery_ns=12345".to_owned(),
        };
        let outcome = Outcome {
            kinds: vec![kind("null write", 12), kind("division by zero", 3)],
            ..Outcome::default()
        };
        let table = table(&outcome);
        let places: Vec<_> = table
            .lines()
            .filter_map(|line| line.find("SIGSEGV"))
            .collect();
        assert_eq!(places.len(), 2);
        assert_eq!(places[0], places[1]);
        assert!(
            table.contains("12 µs") && table.contains("20 ms"),
            "{table}"
        );
    }
}
