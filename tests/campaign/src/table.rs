//! The table that a person wants to see.

use std::fmt::Write;

use crate::report::Report;

/// The report in words and columns.
#[must_use]
pub fn table(report: &Report) -> String {
    let mut text = String::new();
    let _ = write_table(&mut text, report);
    text
}

fn write_table(text: &mut String, report: &Report) -> std::fmt::Result {
    let head = [
        "kind of error",
        "made",
        "lost",
        "right",
        "own damage",
        "no effect",
        "restarted",
        "harmed",
        "crash",
        "hang",
        "detected by",
    ];
    let rows: Vec<[String; 11]> = report
        .kinds
        .iter()
        .map(|kind| {
            let mut detectors: Vec<_> = kind.detected_by.iter().collect();
            detectors.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            let detectors: Vec<_> = detectors
                .into_iter()
                .take(3)
                .map(|(name, _)| &**name)
                .collect();
            let number = |count: u64| match count {
                0 => ".".to_owned(),
                count => count.to_string(),
            };
            [
                kind.kind.clone(),
                number(kind.injected),
                number(kind.request_lost),
                number(kind.recovered_right),
                number(kind.recovered_wrong_answer),
                number(kind.no_effect),
                number(kind.restarted),
                number(kind.others_harmed),
                number(kind.crash),
                number(kind.hang),
                detectors.join(", "),
            ]
        })
        .collect();
    let mut widths = head.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; 11]| {
        let cells: Vec<String> = (cells.iter().zip(widths).enumerate())
            .map(|(column, (cell, width))| match column {
                0 | 10 => format!("{cell:width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        format!("  {}", cells.join("  ").trim_end())
    };
    writeln!(text, "{}", line(head))?;
    writeln!(text, "  {}", "-".repeat(widths.iter().sum::<usize>() + 20))?;
    for row in &rows {
        writeln!(text, "{}", line(row.each_ref().map(String::as_str)))?;
    }
    writeln!(text)?;
    let outage = |outage: &crate::outcome::Outage| {
        format!(
            "{} times, median {} ms, longest {} ms",
            outage.count, outage.median_ms, outage.max_ms
        )
    };
    let facts = [
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
    ];
    for (name, value) in facts {
        writeln!(text, "  {name:<26}  {value}")?;
    }
    Ok(())
}
