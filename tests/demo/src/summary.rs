//! The result of a load in words and columns.

use vmsrs_ledger::load::outcome::Outcome;
use vmsrs_report::table::{Table, numbers, words};

/// A table of the bugs, and the facts of the load.
pub fn summary(outcome: &Outcome, incidents: Option<u64>) -> String {
    format!("{}\n{}", kinds(outcome), facts(outcome, incidents))
}

fn kinds(outcome: &Outcome) -> Table {
    let mut table = Table::plain(&[
        words("kind of bug"),
        numbers("sent"),
        numbers("recovered"),
        words("detected by"),
        numbers("recovery p50"),
        numbers("p99"),
        numbers("served again"),
    ]);
    for kind in &outcome.kinds {
        table.row([
            kind.kind.clone(),
            kind.count.to_string(),
            kind.recovered.to_string(),
            kind.detected_by.clone(),
            time(kind.recovery_ns_p50),
            time(kind.recovery_ns_p99),
            time(kind.served_again_ns_p50),
        ]);
    }
    table
}

fn facts(outcome: &Outcome, incidents: Option<u64>) -> Table {
    let answer = outcome.kinds.iter().find(|kind| !kind.answer.is_empty());
    let answer = answer.map(|kind| ("answer to a failing request", kind.answer.clone()));
    let counts = [
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
            outcome.ordinary_failed().to_string(),
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
    let died = outcome.died.as_ref().map(|death| {
        let words = format!("at request {} ({})", death.at_request, death.cause);
        ("the server died", words)
    });
    let incidents = incidents.map(|count| ("incidents recorded by the host", count.to_string()));
    Table::facts(
        answer
            .into_iter()
            .chain(counts)
            .chain(died)
            .chain(incidents),
    )
}

fn time(nanoseconds: Option<u64>) -> String {
    match nanoseconds {
        None => "-".to_owned(),
        Some(ns) if ns >= 10_000_000 => format!("{} ms", ns / 1_000_000),
        Some(ns) => format!("{} µs", ns / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmsrs_ledger::load::outcome::BugOutcome;

    #[test]
    fn each_kind_has_a_row_with_its_times() {
        let kind = |name: &str, count| BugOutcome {
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
        let text = summary(&outcome, Some(15));
        let rows: Vec<_> = text
            .lines()
            .filter(|line| line.contains("SIGSEGV"))
            .collect();
        assert_eq!(rows.len(), 2);
        assert!(
            rows[0].contains("12 µs") && rows[0].contains("20 ms"),
            "{text}"
        );
        assert!(
            text.contains("  incidents recorded by the host   15\n"),
            "{text}"
        );
    }
}
