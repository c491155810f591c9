//! Several runs with different seeds and numbers of vCPUs.

use std::path::Path;

use vmsrs_report::table::{Table, numbers, words};

use crate::campaign;
use crate::cli::RunArgs;
use crate::report::Report;

/// Seeds of the runs.
const SEEDS: [u64; 3] = [1, 2, 3];
/// Numbers of vCPUs of the runs with each seed.
const VCPUS: [u32; 3] = [1, 2, 4];

/// One run of several.
#[derive(Debug)]
pub struct Run {
    /// Seed of its plan.
    pub seed: u64,
    /// CPUs of its guest.
    pub vcpus: u32,
    /// What it found, or why it failed, in words.
    pub report: Result<Report, String>,
}

impl Run {
    /// Whether it completed and all promises were kept.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let report = self.report.as_ref();
        report.is_ok_and(Report::is_good)
    }
}

/// Does all runs, even if some of them fail, and prints a table; returns whether all were good. Each writes its report to
/// the folder `<seed>-<vcpus>` in `folder`.
#[must_use]
pub fn run(args: &RunArgs, folder: &Path) -> bool {
    let mut runs: Vec<Run> = Vec::new();
    for seed in SEEDS {
        for vcpus in VCPUS {
            println!(
                "\n== run {} of {}: seed {seed}, {vcpus} vCPUs",
                runs.len() + 1,
                SEEDS.len() * VCPUS.len()
            );
            let args = RunArgs {
                seed,
                vcpus,
                ..args.clone()
            };
            let folder = folder.join(format!("{seed}-{vcpus}"));
            let report = campaign::run(&args, &folder).map_err(|error| format!("{error:#}"));
            if let Err(error) = &report {
                println!("  FAILED: {error}");
            }
            runs.push(Run {
                seed,
                vcpus,
                report,
            });
        }
    }
    println!("\n{}", table(&runs));
    runs.iter().all(Run::is_good)
}

/// A row for each run, and one with the sums.
#[must_use]
pub fn table(runs: &[Run]) -> String {
    let counts = [
        "errors", "lost", "own dmg", "harmed", "crashes", "hangs", "commits", "missed", "kernel",
        "restarts", "untagged", "guest", "seconds",
    ];
    let headings = ["seed", "vCPUs"].into_iter().chain(counts).map(numbers);
    let mut table = Table::plain(&headings.chain([words("verdict")]).collect::<Vec<_>>());
    let mut row = |seed: String, vcpus: String, counts: [String; 13], verdict: String| {
        table.row([seed, vcpus].into_iter().chain(counts).chain([verdict]));
    };
    let mut sums = [0; 13];
    for run in runs {
        let (seed, vcpus) = (run.seed.to_string(), run.vcpus.to_string());
        let Ok(report) = &run.report else {
            row(
                seed,
                vcpus,
                counts.map(|_| "-".to_owned()),
                "INCOMPLETE".to_owned(),
            );
            continue;
        };
        let counts = counted(report);
        for (sum, count) in sums.iter_mut().zip(counts) {
            *sum += count;
        }
        let verdict = match report.broken_promises.len() {
            0 => "good".to_owned(),
            _ => format!("BROKEN: {}", report.broken_promises.join("; ")),
        };
        row(seed, vcpus, counts.map(|count| count.to_string()), verdict);
    }
    let good = runs.iter().filter(|run| run.is_good()).count();
    row(
        "all".to_owned(),
        String::new(),
        sums.map(|sum| sum.to_string()),
        format!("{good} of {} good", runs.len()),
    );
    format!(
        "{table}  lost: requests with errors; own dmg: wrong data of the request's own user; commits: lost commits;\n  \
         missed: errors that must be detected and were not; kernel: complaints of the guest's kernel;\n  \
         untagged: deaths of the server by errors outside of domains; guest: unplanned restarts\n"
    )
}

fn counted(report: &Report) -> [u64; 13] {
    let sum = |number: fn(&crate::outcome::KindOutcome) -> u64| {
        report.outcome.kinds.iter().map(number).sum()
    };
    [
        report.outcome.errors_injected,
        sum(|kind| kind.request_lost),
        sum(|kind| kind.recovered_wrong_answer),
        report.outcome.others_harmed,
        report.outcome.crashes,
        report.outcome.hangs,
        report.outcome.commits_lost,
        report.outcome.undetected,
        report.outcome.kernel_complaints,
        report.outcome.server_restarts,
        report.outcome.untagged_deaths,
        report.guest_restarts_unplanned,
        // Whole seconds are enough.
        report.outcome.seconds.round() as u64,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Outcome;
    use crate::report::tests::place;

    fn run(outcome: Outcome) -> Run {
        Run {
            seed: 3,
            vcpus: 4,
            report: Ok(Report::new(place(Some(0)), outcome)),
        }
    }

    #[test]
    fn table_has_sums_and_marks_failed_runs() {
        let good = Outcome {
            errors_injected: 300,
            ..Outcome::default()
        };
        let harmed = Outcome {
            others_harmed: 2,
            errors_injected: 11,
            ..Outcome::default()
        };
        let failed = Run {
            seed: 1,
            vcpus: 1,
            report: Err("no kernel".to_owned()),
        };
        let runs = [run(good), run(harmed), failed];
        assert_eq!(runs.each_ref().map(Run::is_good), [true, false, false]);
        let table = table(&runs);
        for words in ["311", "1 of 3 good", "2 others were harmed", "INCOMPLETE"] {
            assert!(table.contains(words), "{words}: {table}");
        }
    }
}
