//! The report in words and columns.

use vmsrs_report::table::{Table, numbers, words};

use crate::outcome::{KindOutcome, Outage};
use crate::report::Report;

/// What became of each kind of error, and the facts of the run.
#[must_use]
pub fn table(report: &Report) -> String {
    format!("{}\n{}", kinds(&report.kinds), facts(report))
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
                report.seed, report.vcpus, report.guest_kernel
            ),
        ),
        (
            "errors made",
            format!("{} of {}", report.errors_injected, report.errors_planned),
        ),
        (
            "most under way at once",
            report.most_errors_in_flight.to_string(),
        ),
        ("others harmed", report.others_harmed.to_string()),
        (
            "crashes, hangs",
            format!("{}, {}", report.crashes, report.hangs),
        ),
        ("commits lost", report.commits_lost.to_string()),
        ("not detected, and must be", report.undetected.to_string()),
        (
            "complaints of the kernel",
            report.kernel_complaints.to_string(),
        ),
        (
            "restarts of the server",
            format!(
                "{}, {} of them untagged deaths",
                report.server_restarts, report.untagged_deaths
            ),
        ),
        (
            "restarts of the guest",
            format!(
                "{} asked for, {} not, {} of them before the driver was loaded",
                report.guest_restarts_planned,
                report.guest_restarts_unplanned,
                report.guest_boots_cut_short
            ),
        ),
        (
            "errors outside of domains",
            format!(
                "{}: {} ended the process, {} caught, {} not noticed at once; the supervisor ended {}",
                report.untagged.aimed,
                report.untagged.killed,
                report.untagged.caught,
                report.untagged.unnoticed,
                report.untagged.replaced
            ),
        ),
        ("untagged deaths, outage", outage(&report.untagged.outage)),
        ("without server", outage(&report.outage_server)),
        ("without guest", outage(&report.outage_guest)),
        (
            "time",
            format!(
                "{:.0} s, {} requests, {:.0} errors a second",
                report.seconds,
                report.requests,
                report.errors_injected as f64 / report.seconds.max(0.001)
            ),
        ),
    ])
}
