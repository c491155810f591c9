//! The report in words and columns.

use vmsrs_report::table::{Table, numbers, words};

use crate::outcome::{KindOutcome, Outage};
use crate::report::Report;

/// A table of the kinds of errors, and the facts of the run.
#[must_use]
pub fn table(report: &Report) -> String {
    format!("{}\n{}", kinds(&report.outcome.kinds), facts(report))
}

fn kinds(kinds: &[KindOutcome]) -> Table {
    let mut table = Table::plain(&[
        words("kind of error"),
        numbers("made"),
        numbers("lost"),
        numbers("right"),
        numbers("own damage"),
        numbers("no effect"),
        numbers("restarted"),
        numbers("harmed"),
        numbers("crash"),
        numbers("hang"),
        words("detected by"),
    ]);
    for kind in kinds {
        let mut detectors: Vec<_> = kind.detected_by.iter().collect();
        detectors.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let detectors: Vec<&str> = detectors.iter().take(3).map(|(name, _)| &***name).collect();
        let counts = [
            kind.injected,
            kind.request_lost,
            kind.recovered_right,
            kind.recovered_wrong_answer,
            kind.no_effect,
            kind.restarted,
            kind.others_harmed,
            kind.crash,
            kind.hang,
        ];
        let counts = counts.map(|count| match count {
            0 => ".".to_owned(),
            count => count.to_string(),
        });
        let cells = [kind.kind.clone()].into_iter().chain(counts);
        table.row(cells.chain([detectors.join(", ")]));
    }
    table
}

fn facts(report: &Report) -> Table {
    let outage = |outage: &Outage| {
        format!(
            "{} times, median {} ms, longest {} ms",
            outage.count, outage.median_ms, outage.max_ms
        )
    };
    Table::facts([
        (
            "seed, vCPUs, guest",
            format!(
                "{}, {}, Linux {}",
                report.place.seed, report.place.vcpus, report.place.guest_kernel
            ),
        ),
        (
            "errors made",
            format!(
                "{} of {}",
                report.outcome.errors_injected, report.outcome.errors_planned
            ),
        ),
        (
            "most errors in flight",
            report.outcome.most_errors_in_flight.to_string(),
        ),
        ("others harmed", report.outcome.others_harmed.to_string()),
        (
            "crashes, hangs",
            format!("{}, {}", report.outcome.crashes, report.outcome.hangs),
        ),
        ("commits lost", report.outcome.commits_lost.to_string()),
        ("undetected", report.outcome.undetected.to_string()),
        (
            "complaints of the kernel",
            report.outcome.kernel_complaints.to_string(),
        ),
        (
            "restarts of the server",
            format!(
                "{}, {} of them untagged deaths",
                report.outcome.server_restarts, report.outcome.untagged_deaths
            ),
        ),
        (
            "restarts of the guest",
            format!(
                "{} planned, {} not, {} of them before the driver was loaded",
                report.outcome.guest_restarts_planned,
                report.guest_restarts_unplanned,
                report.outcome.guest_boots_cut_short
            ),
        ),
        (
            "errors outside of domains",
            format!(
                "{}: {} ended the process, {} caught, {} without effect at once; the supervisor ended {}",
                report.outcome.untagged.aimed,
                report.outcome.untagged.killed,
                report.outcome.untagged.caught,
                report.outcome.untagged.unnoticed,
                report.outcome.untagged.replaced
            ),
        ),
        (
            "outages by untagged deaths",
            outage(&report.outcome.untagged.outage),
        ),
        (
            "outages of the server",
            outage(&report.outcome.outage_server),
        ),
        ("outages of the guest", outage(&report.outcome.outage_guest)),
        (
            "time",
            format!(
                "{:.0} s, {} requests, {:.0} errors a second",
                report.outcome.seconds,
                report.outcome.requests,
                report.outcome.errors_injected as f64 / report.outcome.seconds.max(0.001)
            ),
        ),
    ])
}
