//! How fatal requests affect ordinary ones: latency and throughput, compared with the same load without fatal requests
//! and with the server without VMSRS.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use vmsrs_bed::project;
use vmsrs_ledger::load::outcome::Outcome;
use vmsrs_ledger::load::pace::INTERVAL;
use vmsrs_report::chart::{Chart, Line, SeriesLabelPosition};
use vmsrs_report::distribution::Distribution;
use vmsrs_report::folder;
use vmsrs_report::steps::Steps;
use vmsrs_report::table::{Table, numbers, words};

use crate::cli::IntegralArgs;
use crate::guests::{Clock, Guests, Half};

/// An interval of the time line is a point of the chart.
const SECONDS_PER_POINT: f64 = INTERVAL.as_millis() as f64 / 1000.0;

/// The loads that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    Plain,
    PlainDisturbed,
    Undisturbed,
    Disturbed,
}

impl Load {
    const ALL: [Self; 4] = [
        Self::Plain,
        Self::PlainDisturbed,
        Self::Undisturbed,
        Self::Disturbed,
    ];

    fn half(self) -> Half {
        match self {
            Self::Plain | Self::PlainDisturbed => Half::Plain,
            Self::Undisturbed | Self::Disturbed => Half::Protected,
        }
    }

    fn is_disturbed(self) -> bool {
        matches!(self, Self::PlainDisturbed | Self::Disturbed)
    }

    fn title(self, fatal_one_in: usize) -> String {
        let with = match self.half() {
            Half::Plain => "without",
            Half::Protected => "with",
        };
        match self.is_disturbed() {
            false => format!("{with} VMSRS, undisturbed"),
            true => format!("{with} VMSRS, one in {fatal_one_in} fatal"),
        }
    }

    /// What its outcome does not keep of what was promised. Without VMSRS the first fatal request is expected to end the
    /// server.
    fn broken_promises(self, outcome: &Outcome) -> Vec<String> {
        match self {
            Self::PlainDisturbed if outcome.died.is_some() => Vec::new(),
            Self::PlainDisturbed => {
                vec!["the server without VMSRS survived: there is nothing to compare".to_owned()]
            }
            _ => outcome.broken_promises(),
        }
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
    /// Fatal requests that were undone completely.
    recovered: u64,
    /// Ordinary requests that failed or had a wrong answer.
    ordinary_failed: u64,
    /// The request at which the server died, in each round in which it did.
    died_at: Vec<u64>,
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

/// Measurements of ordinary requests.
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
    fn new(latencies: &Distribution, seconds: f64) -> Self {
        Self {
            ordinary_requests: latencies.count(),
            seconds,
            ordinary_per_second: latencies.count() as f64 / seconds,
            latency_ns_p50: latencies.median(),
            latency_ns_p99: latencies.percentile(99),
            latency_ns_max: latencies.percentile(100),
        }
    }
}

impl Compared {
    /// The outcomes of all rounds, with their seeds.
    fn new(name: String, rounds: &[(u64, Outcome)]) -> Self {
        let outcomes = || rounds.iter().map(|(_, outcome)| outcome);
        let mut all = Distribution::default();
        outcomes().for_each(|outcome| all.add(&outcome.pace.latencies));
        Self {
            name,
            fatal_requests: outcomes().map(|outcome| outcome.fatal_requests).sum(),
            recovered: outcomes().map(|outcome| outcome.recovered).sum(),
            ordinary_failed: outcomes().map(Outcome::ordinary_failed).sum(),
            died_at: outcomes()
                .filter_map(|outcome| Some(outcome.died.as_ref()?.at_request))
                .collect(),
            all: Figures::new(&all, outcomes().map(|outcome| outcome.seconds).sum()),
            rounds: rounds
                .iter()
                .map(|(seed, outcome)| Round {
                    seed: *seed,
                    figures: Figures::new(&outcome.pace.latencies, outcome.seconds),
                    timeline: outcome.pace.timeline.clone(),
                })
                .collect(),
        }
    }

    /// The mean of all rounds, up to the end of the shortest.
    fn line(&self) -> Line {
        // The last interval is incomplete.
        let whole = |round: &Round| round.timeline.len().saturating_sub(1);
        let points = self.rounds.iter().map(whole).min().unwrap_or(0);
        let mean = |point: usize| {
            let sum: u64 = self.rounds.iter().map(|round| round.timeline[point]).sum();
            sum as f64 / (self.rounds.len() as f64 * SECONDS_PER_POINT)
        };
        Line {
            name: self.name.clone(),
            points: (0..points)
                .map(|point| ((point as f64 + 0.5) * SECONDS_PER_POINT, mean(point)))
                .collect(),
        }
    }
}

/// Runs the measurement; returns whether all promises were kept.
///
/// # Errors
///
/// When it cannot be completed.
pub fn run(args: &IntegralArgs) -> Result<bool> {
    let steps = Steps::new();
    let folder = project::root().join("target/integral");
    folder::create(&folder)?;
    let guests = Guests::prepare(&steps, &folder, args.server)?;
    let name =
        |load: Load, round: u32| format!("{}, round {}", load.title(args.fatal_one_in), round + 1);
    let loads: Vec<_> = (0..args.rounds)
        .flat_map(|round| Load::ALL.map(|load| (load, round)))
        .map(|(load, round)| {
            let wanted = args.load(round, load.is_disturbed());
            (name(load, round), load.half(), wanted)
        })
        .collect();
    let limit = Duration::from_secs(args.limit);
    let mut found = guests.run(&steps, &loads, limit, Clock::Instructions)?;

    let mut broken = Vec::new();
    let mut compared = Vec::new();
    for load in Load::ALL {
        let mut rounds = Vec::new();
        for round in 0..args.rounds {
            let name = name(load, round);
            let outcome = found.take(&name)?.outcome;
            let words = load.broken_promises(&outcome).into_iter();
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
        lines: lines(&report.loads),
    };
    folder::write_report(&folder, &report)?;
    folder::write(&folder, "throughput.svg", &chart.svg()?)?;
    print!("{}", table(&report.loads));
    println!("\nthe report and the chart: {}", folder.display());
    for words in &broken {
        println!("  BROKEN: {words}");
    }
    Ok(broken.is_empty())
}

/// The lines of all loads. Where a server has died, nobody is answered any more.
fn lines(loads: &[Compared]) -> Vec<Line> {
    let mut lines: Vec<Line> = loads.iter().map(Compared::line).collect();
    let length = |lines: &[Line]| lines.iter().map(|line| line.points.len()).max();
    let longest = length(&lines).unwrap_or(0);
    let ended = loads.iter().map(|load| !load.died_at.is_empty());
    for (line, _) in lines.iter_mut().zip(ended).filter(|(_, ended)| *ended) {
        for point in line.points.len()..longest {
            line.points
                .push(((point as f64 + 0.5) * SECONDS_PER_POINT, 0.0));
        }
    }
    lines
}

/// The figures as a table in Markdown; in brackets the smallest and the largest of a round.
fn table(loads: &[Compared]) -> Table {
    let mut table = Table::markdown(&[
        words(""),
        numbers("ordinary requests"),
        numbers("fatal, undone"),
        numbers("others failed"),
        numbers("requests/s"),
        numbers("p50, ms"),
        numbers("p99, ms"),
        numbers("longest, ms"),
    ]);
    for load in loads {
        let figure = |of: &dyn Fn(&Figures) -> f64, digits| {
            let rounds = load.rounds.iter().map(|round| of(&round.figures));
            with_range(of(&load.all), rounds, digits)
        };
        let milliseconds = |of: fn(&Figures) -> Option<u64>| {
            figure(
                &|figures| of(figures).map_or(f64::NAN, |ns| ns as f64 / 1e6),
                2,
            )
        };
        table.row([
            match load.died_at.as_slice() {
                [] => load.name.clone(),
                [at, ..] => format!("{}: died at request {at}", load.name),
            },
            load.all.ordinary_requests.to_string(),
            format!("{}, {}", load.fatal_requests, load.recovered),
            load.ordinary_failed.to_string(),
            figure(&|figures| figures.ordinary_per_second, 0),
            milliseconds(|figures| figures.latency_ns_p50),
            milliseconds(|figures| figures.latency_ns_p99),
            milliseconds(|figures| figures.latency_ns_max),
        ]);
    }
    table
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
    use vmsrs_ledger::load::pace::Pace;

    fn outcome(latency: u64, requests: usize, timeline: &[u64], seconds: f64) -> Outcome {
        Outcome {
            fatal_requests: 2,
            recovered: 2,
            seconds,
            pace: Pace {
                latencies: std::iter::repeat_n(latency, requests).collect(),
                timeline: timeline.to_vec(),
            },
            ..Outcome::default()
        }
    }

    fn two_rounds() -> Compared {
        let rounds = [
            (1, outcome(1_000_000, 10, &[1, 2, 3, 4, 0], 1.0)),
            (2, outcome(3_000_000, 20, &[3, 3, 3, 3, 7, 1], 2.0)),
        ];
        Compared::new("a load".to_owned(), &rounds)
    }

    #[test]
    fn a_server_that_has_died_answers_nobody_to_the_end() {
        let outcome = |timeline: &[u64]| outcome(5, 10, timeline, 1.0);
        let mut died = Compared::new("died".to_owned(), &[(1, outcome(&[2, 2, 1]))]);
        died.died_at = vec![6];
        let other = Compared::new("other".to_owned(), &[(1, outcome(&[1; 9]))]);
        let heights = |line: &Line| line.points.iter().map(|&(_, y)| y).collect::<Vec<_>>();
        let lines = lines(&[died, other]);
        assert_eq!(heights(&lines[0])[..3], [40.0, 40.0, 0.0]);
        assert_eq!(heights(&lines[1]), [20.0; 8]);
    }

    #[test]
    fn rounds_are_counted_together_and_alone() {
        let compared = two_rounds();
        assert_eq!(compared.all.ordinary_requests, 30);
        assert_eq!(compared.all.ordinary_per_second, 10.0);
        let is_about = |latency: Option<u64>, exact: u64| {
            latency.is_some_and(|latency| latency.abs_diff(exact) <= exact / 100)
        };
        assert!(is_about(compared.all.latency_ns_p50, 3_000_000));
        assert!(is_about(
            compared.rounds[0].figures.latency_ns_p99,
            1_000_000
        ));
        assert_eq!((compared.fatal_requests, compared.recovered), (4, 4));
    }

    #[test]
    fn point_of_the_line_is_the_mean_of_all_rounds() {
        let line = two_rounds().line();
        let heights: Vec<_> = line.points.iter().map(|&(_, y)| y).collect();
        assert_eq!(heights, [40.0, 50.0, 60.0, 70.0]);
    }

    #[test]
    fn the_table_has_the_range_of_the_rounds() {
        let table = table(&[two_rounds()]).to_string();
        let line = table.lines().last().unwrap();
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let latency = "3.01 (1.00-3.01)";
        assert_eq!(
            cells[1..9],
            [
                "a load",
                "30",
                "4, 4",
                "0",
                "10 (10-10)",
                latency,
                latency,
                latency
            ]
        );
    }
}
