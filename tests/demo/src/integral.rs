//! What ordinary requests notice of fatal ones: their latency and their number over time, beside the same load without
//! fatal requests, and beside the server without VMSRS.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use vmsrs_bed::project;

use crate::chart::{Chart, Line, SeriesLabelPosition};
use crate::cli::IntegralArgs;
use crate::guests::{Guests, Half};
use crate::outcome::Outcome;
use crate::pace::{INTERVAL, Pace};
use crate::steps::Steps;

/// Intervals of the time line that one point of the chart has.
const INTERVALS_A_POINT: usize = 4;

/// The loads that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    Plain,
    Undisturbed,
    Disturbed,
}

impl Load {
    const ALL: [Self; 3] = [Self::Plain, Self::Undisturbed, Self::Disturbed];

    fn half(self) -> Half {
        match self {
            Self::Plain => Half::Plain,
            Self::Undisturbed | Self::Disturbed => Half::Protected,
        }
    }

    fn title(self, fatal_one_in: usize) -> String {
        match self {
            Self::Plain => "without VMSRS, undisturbed".to_owned(),
            Self::Undisturbed => "with VMSRS, undisturbed".to_owned(),
            Self::Disturbed => format!("with VMSRS, one in {fatal_one_in} fatal"),
        }
    }

    /// The order in a round: in any three rounds each is first, second and last, so that none has
    /// the quieter machine.
    fn order(round: u32) -> [Self; 3] {
        let mut order = Self::ALL;
        order.rotate_left(round as usize % Self::ALL.len());
        order
    }
}

/// `target/integral/report.json`.
#[derive(Debug, Serialize)]
struct Report {
    accelerator: &'static str,
    guest_kernel: String,
    users: usize,
    connections: usize,
    fatal_one_in: usize,
    /// Length of an interval of the time lines.
    interval_ms: u64,
    loads: Vec<Compared>,
}

/// One of the loads, over all rounds.
#[derive(Debug, Serialize)]
struct Compared {
    name: String,
    fatal_requests: u64,
    /// Fatal requests that were undone exactly.
    recovered: u64,
    /// Ordinary requests that failed or had a wrong answer.
    ordinary_failed: u64,
    #[serde(flatten)]
    all: Figures,
    rounds: Vec<Round>,
}

#[derive(Debug, Serialize)]
struct Round {
    seed: u64,
    #[serde(flatten)]
    figures: Figures,
    /// Ordinary requests answered in each interval.
    timeline: Vec<u64>,
}

/// What is known of ordinary requests.
#[derive(Debug, Serialize)]
struct Figures {
    ordinary_requests: u64,
    seconds: f64,
    ordinary_per_second: f64,
    latency_ns_p50: Option<u64>,
    latency_ns_p99: Option<u64>,
    latency_ns_max: Option<u64>,
}

impl Figures {
    fn new(pace: &Pace, seconds: f64) -> Self {
        Self {
            ordinary_requests: pace.requests(),
            seconds,
            ordinary_per_second: pace.requests() as f64 / seconds,
            latency_ns_p50: pace.percentile_ns(50),
            latency_ns_p99: pace.percentile_ns(99),
            latency_ns_max: pace.percentile_ns(100),
        }
    }
}

impl Compared {
    /// The outcomes of all rounds, with their seeds.
    fn new(name: String, rounds: &[(u64, Outcome)]) -> Self {
        let outcomes = || rounds.iter().map(|(_, outcome)| outcome);
        let all = Pace::merged(outcomes().map(|outcome| &outcome.pace));
        Self {
            name,
            fatal_requests: outcomes().map(|outcome| outcome.fatal_requests).sum(),
            recovered: outcomes().map(|outcome| outcome.recovered).sum(),
            ordinary_failed: outcomes()
                .map(|outcome| outcome.innocent_requests_failed + outcome.innocent_answers_wrong)
                .sum(),
            all: Figures::new(&all, outcomes().map(|outcome| outcome.seconds).sum()),
            rounds: rounds
                .iter()
                .map(|(seed, outcome)| Round {
                    seed: *seed,
                    figures: Figures::new(&outcome.pace, outcome.seconds),
                    timeline: outcome.pace.timeline.clone(),
                })
                .collect(),
        }
    }

    /// The mean of all rounds, as long as all of them last.
    fn line(&self) -> Line {
        let seconds = INTERVAL.as_secs_f64() * INTERVALS_A_POINT as f64;
        // The last interval is not a whole one.
        let whole = |round: &Round| round.timeline.len().saturating_sub(1) / INTERVALS_A_POINT;
        let points = self.rounds.iter().map(whole).min().unwrap_or(0);
        let mean = |point: usize| {
            let from = point * INTERVALS_A_POINT;
            let rounds = self.rounds.iter();
            let sum: u64 = rounds
                .flat_map(|round| &round.timeline[from..from + INTERVALS_A_POINT])
                .sum();
            sum as f64 / (self.rounds.len() as f64 * seconds)
        };
        Line {
            name: self.name.clone(),
            points: (0..points)
                .map(|point| ((point as f64 + 0.5) * seconds, mean(point)))
                .collect(),
        }
    }
}

/// Makes the measurement; whether all promises were kept meanwhile.
///
/// # Errors
///
/// When it cannot be made to its end.
pub fn run(args: &IntegralArgs) -> Result<bool> {
    let steps = Steps::new();
    let folder = project::root().join("target/integral");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let guests = Guests::prepare(&steps, &folder, args.server)?;
    let name =
        |load: Load, round: u32| format!("{}, round {}", load.title(args.fatal_one_in), round + 1);
    let loads: Vec<_> = (0..args.rounds)
        .flat_map(|round| Load::order(round).map(|load| (load, round)))
        .map(|(load, round)| {
            let wanted = args.load(round, load == Load::Disturbed);
            (name(load, round), load.half(), wanted)
        })
        .collect();
    let mut ended = guests.run(&steps, &loads, Duration::from_secs(args.limit))?;

    let mut broken = Vec::new();
    let mut compared = Vec::new();
    for load in Load::ALL {
        let mut rounds = Vec::new();
        for round in 0..args.rounds {
            let name = name(load, round);
            let outcome = ended.take(&name)?.outcome;
            let words = outcome.broken_promises().into_iter();
            broken.extend(words.map(|words| format!("{name}: {words}")));
            rounds.push((args.load(round, false).seed, outcome));
        }
        compared.push(Compared::new(load.title(args.fatal_one_in), &rounds));
    }
    let report = Report {
        accelerator: guests.accelerator(),
        guest_kernel: guests.kernel_release().to_owned(),
        users: args.users,
        connections: args.connections,
        fatal_one_in: args.fatal_one_in,
        interval_ms: INTERVAL.as_millis() as u64,
        loads: compared,
    };
    let chart = Chart {
        title: "Ordinary requests answered in a second, mean of all rounds",
        across: "seconds since the first request",
        up: "requests per second",
        legend: SeriesLabelPosition::UpperRight,
        lines: report.loads.iter().map(Compared::line).collect(),
    };
    for (name, text) in [
        ("report.json", serde_json::to_string_pretty(&report)? + "\n"),
        ("throughput.svg", chart.svg()?),
    ] {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    print!("{}", table(&report.loads));
    println!("\nthe report and the chart: {}", folder.display());
    for words in &broken {
        println!("  BROKEN: {words}");
    }
    Ok(broken.is_empty())
}

/// The figures as a table in Markdown; in brackets the smallest and the largest of a round.
fn table(loads: &[Compared]) -> String {
    let mut text = String::from(
        "| | ordinary requests | fatal, undone | others failed | requests/s | p50, ms | p99, ms | longest, ms |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for load in loads {
        let milliseconds = |of: fn(&Figures) -> Option<u64>| {
            let of = move |figures: &Figures| of(figures).map_or(f64::NAN, |ns| ns as f64 / 1e6);
            with_range(
                of(&load.all),
                load.rounds.iter().map(|round| of(&round.figures)),
                1,
            )
        };
        let per_second = with_range(
            load.all.ordinary_per_second,
            load.rounds
                .iter()
                .map(|round| round.figures.ordinary_per_second),
            0,
        );
        text.push_str(&format!(
            "| {} | {} | {}, {} | {} | {per_second} | {} | {} | {} |\n",
            load.name,
            load.all.ordinary_requests,
            load.fatal_requests,
            load.recovered,
            load.ordinary_failed,
            milliseconds(|figures| figures.latency_ns_p50),
            milliseconds(|figures| figures.latency_ns_p99),
            milliseconds(|figures| figures.latency_ns_max),
        ));
    }
    text
}

fn with_range(all: f64, rounds: impl Iterator<Item = f64>, digits: usize) -> String {
    let (least, most) = rounds.fold(
        (f64::INFINITY, f64::NEG_INFINITY),
        |(least, most), value| (least.min(value), most.max(value)),
    );
    format!("{all:.digits$} ({least:.digits$}-{most:.digits$})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(latencies: &[(u64, u64)], timeline: &[u64], seconds: f64) -> Outcome {
        Outcome {
            fatal_requests: 2,
            recovered: 2,
            seconds,
            pace: Pace {
                latencies: latencies.to_vec(),
                timeline: timeline.to_vec(),
            },
            ..Outcome::default()
        }
    }

    fn two_rounds() -> Compared {
        let rounds = [
            (1, outcome(&[(1_000_000, 10)], &[1, 2, 3, 4, 0], 1.0)),
            (2, outcome(&[(3_000_000, 20)], &[3, 3, 3, 3, 7, 1], 2.0)),
        ];
        Compared::new("a load".to_owned(), &rounds)
    }

    #[test]
    fn each_load_takes_each_place_in_a_round() {
        for load in Load::ALL {
            for place in 0..3 {
                assert!((0..3).any(|round| Load::order(round)[place] == load));
            }
        }
    }

    #[test]
    fn rounds_are_counted_together_and_alone() {
        let compared = two_rounds();
        assert_eq!(compared.all.ordinary_requests, 30);
        assert_eq!(compared.all.ordinary_per_second, 10.0);
        assert_eq!(compared.all.latency_ns_p50, Some(3_000_000));
        assert_eq!(compared.rounds[0].figures.latency_ns_p99, Some(1_000_000));
        assert_eq!((compared.fatal_requests, compared.recovered), (4, 4));
    }

    #[test]
    fn a_point_of_the_line_is_the_mean_of_the_rounds_while_all_last() {
        assert_eq!(two_rounds().line().points, [(0.5, 11.0)]);
    }

    #[test]
    fn the_table_has_the_range_of_the_rounds() {
        let table = table(&[two_rounds()]);
        let line = table.lines().last().unwrap();
        assert_eq!(
            line,
            "| a load | 30 | 4, 4 | 0 | 10 (10-10) | 3.0 (1.0-3.0) | 3.0 (1.0-3.0) | 3.0 (1.0-3.0) |"
        );
    }
}
