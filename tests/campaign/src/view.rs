//! The report as a web page: a bar for each kind of error, coloured by the outcomes of its errors.

use std::fmt::Write;

use crate::outcome::KindOutcome;
use crate::report::Report;

/// Width of a bar in the page, in pixels.
const WIDTH: f64 = 460.0;
/// Height of a row.
const ROW: usize = 20;

/// An outcome class: its name, its colour, its number.
type Class = (&'static str, &'static str, fn(&KindOutcome) -> u64);

/// The outcome classes, the best ones first.
const CLASSES: [Class; 8] = [
    ("only the request lost", "#4c8c4a", |kind| kind.request_lost),
    (
        "right answer, error stopped or repaired",
        "#7fb8a4",
        |kind| kind.recovered_right,
    ),
    ("no effect", "#c9c9c9", |kind| kind.no_effect),
    ("restarted, as expected of the kind", "#5b7db1", |kind| {
        kind.restarted
    }),
    ("wrong answer or data of its own user", "#e0b04c", |kind| {
        kind.recovered_wrong_answer
    }),
    ("others harmed", "#c0392b", |kind| kind.others_harmed),
    ("crash", "#7b1f6a", |kind| kind.crash),
    ("hang", "#000000", |kind| kind.hang),
];

/// A self-contained HTML page.
#[must_use]
pub fn page(report: &Report) -> String {
    let mut page = String::new();
    // A string can always be written.
    let _ = write_page(&mut page, report);
    page
}

fn write_page(page: &mut String, report: &Report) -> std::fmt::Result {
    let verdict = match report.broken_promises.len() {
        0 => "all promises were kept".to_owned(),
        _ => report.broken_promises.join("; "),
    };
    writeln!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <title>Fault campaign, seed {seed}, {vcpus} vCPUs</title>\n\
         <style>body{{font:14px system-ui,sans-serif;margin:2em;max-width:64em;color:#222}}\
         text{{font:13px system-ui,sans-serif}}li{{display:inline-block;margin-right:1.2em}}\
         ul{{padding:0}}i{{display:inline-block;width:.8em;height:.8em;margin-right:.4em}}\
         </style></head><body>\n\
         <h1>Fault campaign: {errors} errors</h1>\n\
         <p>Seed {seed}, {vcpus} vCPUs, Linux {kernel}: <b>{verdict}</b>.</p>\n\
         <p>Others harmed: {harmed}. Crashes: {crashes}. Hangs: {hangs}. Commits lost: {commits}. \
         Restarts of the server: {restarts}, {untagged} of them by errors outside of domains (longest \
         outage {outage} ms). Most errors in flight: {flying}.</p>",
        seed = report.place.seed,
        vcpus = report.place.vcpus,
        errors = report.outcome.errors_injected,
        kernel = escape(&report.place.guest_kernel),
        verdict = escape(&verdict),
        harmed = report.outcome.others_harmed,
        crashes = report.outcome.crashes,
        hangs = report.outcome.hangs,
        commits = report.outcome.commits_lost,
        restarts = report.outcome.server_restarts,
        untagged = report.outcome.untagged_deaths,
        outage = report.outcome.untagged.outage.max_ms,
        flying = report.outcome.most_errors_in_flight,
    )?;
    page.push_str("<ul>");
    for (name, colour, _) in CLASSES {
        write!(page, "<li><i style=\"background:{colour}\"></i>{name}</li>")?;
    }
    let height = ROW * report.outcome.kinds.len();
    writeln!(
        page,
        "</ul>\n<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"880\" height=\"{height}\" role=\"img\" \
         aria-label=\"Outcomes of each kind of error\">"
    )?;
    for (number, kind) in report.outcome.kinds.iter().enumerate() {
        row(page, number * ROW, kind)?;
    }
    writeln!(page, "</svg>\n</body></html>")
}

fn row(page: &mut String, y: usize, kind: &KindOutcome) -> std::fmt::Result {
    let name = escape(&kind.kind);
    writeln!(
        page,
        "<text x=\"340\" y=\"{}\" text-anchor=\"end\">{name}</text>",
        y + 14
    )?;
    let all: u64 = CLASSES.iter().map(|(.., number)| number(kind)).sum();
    let mut x = 350.0;
    for (class, colour, number) in CLASSES {
        let count = number(kind);
        if count == 0 {
            continue;
        }
        let width = WIDTH * count as f64 / all as f64;
        writeln!(
            page,
            "<rect x=\"{x:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"14\" fill=\"{colour}\">\
             <title>{name}: {count} of {all}, {class}</title></rect>",
            y + 3
        )?;
        x += width;
    }
    writeln!(page, "<text x=\"820\" y=\"{}\">{all}</text>", y + 14)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Outcome;
    use crate::report::tests::place;

    #[test]
    fn page_is_self_contained_with_full_bars() {
        let kind = KindOutcome {
            kind: "a < b".to_owned(),
            injected: 4,
            request_lost: 3,
            hang: 1,
            ..KindOutcome::default()
        };
        let outcome = Outcome {
            kinds: vec![kind],
            hangs: 1,
            ..Outcome::default()
        };
        let page = page(&Report::new(place(Some(0)), outcome));
        for words in [
            "width=\"345.0\"",
            "width=\"115.0\"",
            "a &lt; b",
            "<b>1 hangs</b>",
        ] {
            assert!(page.contains(words), "{words}: {page}");
        }
        assert!(!page.contains("src=") && !page.contains("href="));
    }
}
