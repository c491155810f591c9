//! The results of all trials: counts, tables and a plot.

use anyhow::Result;
use serde::Serialize;
use vmsrs_report::chart::{Chart, Line, SeriesLabelPosition};
use vmsrs_report::distribution::Distribution;
use vmsrs_report::table::{Table, numbers, words};

use crate::access::Access;
use crate::owner::Owner;
use crate::place::Region;
use crate::trial::{Outcome, Trial, Who};

/// The counts of one region.
#[derive(Debug, Default, Serialize)]
pub struct Row {
    /// The region, or `all`.
    pub region: String,
    /// Words corrupted.
    pub corrupted: usize,
    /// Of these, inside a request; the others between two.
    pub inside_requests: usize,
    /// Never accessed.
    pub never_touched: usize,
    /// First accessed by a write that did not depend on it.
    pub written_first: usize,
    /// First read by the request in which it was corrupted.
    pub read_first_by_same_request: usize,
    /// First read by a later request of the same user.
    pub read_first_by_same_user: usize,
    /// First read by another user's request.
    pub read_first_by_other_user: usize,
    /// First read by the thread that accepts connections.
    pub read_first_by_server: usize,
    /// Overwritten completely while it was followed.
    pub cleansed: usize,
    /// Of these, before it was read.
    pub cleansed_unread: usize,
    /// Read by another user's request at any time.
    pub read_by_other_user: usize,
    /// Requests until it was overwritten: the median.
    pub median_lifetime: Option<u64>,
    /// All answers and all state were right.
    pub harmless: usize,
    /// Wrong only for the user in or after whose request it was corrupted.
    pub own_wrong: usize,
    /// Wrong for others.
    pub others_wrong: usize,
    /// The server died.
    pub crashes: usize,
    /// Of these, in another request than the one in or after which it was corrupted.
    pub crashes_later: usize,
    /// An answer never came.
    pub hangs: usize,
}

/// The report.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    /// Seed of the first trial; the others follow.
    pub seed: u64,
    /// Words corrupted.
    pub trials: usize,
    /// Requests that each was followed for.
    pub requests: u32,
    /// A row for each region, and one for all.
    pub rows: Vec<Row>,
    /// A row for each owner of words in blocks of the heap that are in use.
    pub owners: Vec<Row>,
    /// Each trial.
    pub words: &'a [Trial],
}

impl Row {
    fn of<'a>(region: &str, trials: impl Iterator<Item = &'a Trial>) -> Self {
        let mut row = Self {
            region: region.to_owned(),
            ..Self::default()
        };
        let mut lifetimes = Distribution::default();
        for trial in trials {
            row.add(trial);
            lifetimes.extend(trial.cleansed_after.map(u64::from));
        }
        row.median_lifetime = lifetimes.median();
        row
    }

    fn add(&mut self, trial: &Trial) {
        self.corrupted += 1;
        self.inside_requests += usize::from(trial.inside.is_some());
        let first = trial.first.as_ref().map(|touch| (touch.access, touch.who));
        let counter = match first {
            None => &mut self.never_touched,
            Some((Access::Write, _)) => &mut self.written_first,
            Some((Access::Read, Who::SameRequest)) => &mut self.read_first_by_same_request,
            Some((Access::Read, Who::SameUser)) => &mut self.read_first_by_same_user,
            Some((Access::Read, Who::OtherUser)) => &mut self.read_first_by_other_user,
            Some((Access::Read, Who::Server)) => &mut self.read_first_by_server,
        };
        *counter += 1;
        self.cleansed += usize::from(trial.cleansed_after.is_some());
        let unread = trial.cleansed_after.is_some() && trial.first_read.is_none();
        self.cleansed_unread += usize::from(unread);
        self.read_by_other_user += usize::from(trial.read_by_other.is_some());
        let outcome = match trial.outcome {
            Outcome::Nothing => &mut self.harmless,
            Outcome::OwnWrong => &mut self.own_wrong,
            Outcome::OthersWrong => &mut self.others_wrong,
            Outcome::Crash => &mut self.crashes,
            Outcome::Hang => &mut self.hangs,
        };
        *outcome += 1;
        let later = trial.outcome == Outcome::Crash && trial.wrong_after != Some(0);
        self.crashes_later += usize::from(later);
    }
}

const OWNERS: [(Owner, &str); 4] = [
    (Owner::Own, "the request's own user"),
    (Owner::OtherUser, "another user"),
    (Owner::Shared, "the directory"),
    (Owner::Process, "the process"),
];

impl<'a> Report<'a> {
    /// Counts the trials.
    pub fn new(seed: u64, requests: u32, words: &'a [Trial]) -> Self {
        let mut rows: Vec<Row> = Region::ALL
            .into_iter()
            .map(|region| {
                let trials = words.iter().filter(|trial| trial.region == region);
                Row::of(region.name(), trials)
            })
            .collect();
        rows.push(Row::of("all", words.iter()));
        let owners = OWNERS
            .into_iter()
            .map(|(owner, name)| {
                Row::of(
                    name,
                    words.iter().filter(|trial| trial.owner == Some(owner)),
                )
            })
            .collect();
        Self {
            seed,
            trials: words.len(),
            requests,
            rows,
            owners,
            words,
        }
    }

    /// The numbers as tables in Markdown.
    pub fn tables(&self) -> String {
        [
            first_touches(&self.rows),
            outcomes("region", &self.rows),
            outcomes("owner of a block in use", &self.owners),
        ]
        .map(|table| table.to_string())
        .join("\n")
    }

    /// The share of words of a region that are still corrupted after each number of requests. Words of a server that died
    /// or hung are not counted from then on.
    fn survival(&self, region: Region) -> Vec<f64> {
        let words: Vec<&Trial> = self
            .words
            .iter()
            .filter(|word| word.region == region)
            .collect();
        let mut share = 1.0;
        let mut line = vec![1.0];
        for after in 0..=self.requests {
            let at_risk = words.iter().filter(|word| {
                word.followed >= after && word.cleansed_after.is_none_or(|at| at >= after)
            });
            let cleansed = words
                .iter()
                .filter(|word| word.cleansed_after == Some(after));
            let (at_risk, cleansed) = (at_risk.count(), cleansed.count());
            if at_risk > 0 {
                share *= 1.0 - cleansed as f64 / at_risk as f64;
            }
            line.push(share);
        }
        line
    }

    /// The lifetimes of corrupted words as an SVG.
    ///
    /// # Errors
    ///
    /// As [`Chart::svg`].
    pub fn plot(&self) -> Result<String> {
        let line = |region: Region| Line {
            name: region.name().to_owned(),
            points: (0..)
                .map(f64::from)
                .zip(self.survival(region).into_iter().map(|share| share * 100.0))
                .collect(),
        };
        let chart = Chart {
            title: "Words that are still corrupted",
            across: "requests since the corruption",
            up: "per cent",
            legend: SeriesLabelPosition::LowerRight,
            lines: Region::ALL.into_iter().map(line).collect(),
        };
        chart.svg()
    }
}

/// Who touched corrupted words first.
fn first_touches(rows: &[Row]) -> Table {
    let mut table = Table::markdown(&[
        words("region"),
        numbers("corrupted"),
        numbers("never touched"),
        numbers("written first"),
        numbers("read first: same request"),
        numbers("same user"),
        numbers("other user"),
        numbers("server"),
    ]);
    for row in rows {
        let counts = [
            row.corrupted,
            row.never_touched,
            row.written_first,
            row.read_first_by_same_request,
            row.read_first_by_same_user,
            row.read_first_by_other_user,
            row.read_first_by_server,
        ];
        let counts = counts.map(|count| count.to_string());
        table.row([row.region.clone()].into_iter().chain(counts));
    }
    table
}

/// What became of corrupted words, and of the server.
fn outcomes(heading: &'static str, rows: &[Row]) -> Table {
    let mut table = Table::markdown(&[
        words(heading),
        numbers("corrupted"),
        numbers("cleansed"),
        numbers("unread"),
        numbers("median life"),
        numbers("ever read by another user"),
        numbers("harmless"),
        numbers("own wrong"),
        numbers("others wrong"),
        numbers("crash (later)"),
        numbers("hang"),
    ]);
    for row in rows {
        let life = row.median_lifetime;
        table.row([
            row.region.clone(),
            row.corrupted.to_string(),
            row.cleansed.to_string(),
            row.cleansed_unread.to_string(),
            life.map_or("-".to_owned(), |life| life.to_string()),
            row.read_by_other_user.to_string(),
            row.harmless.to_string(),
            row.own_wrong.to_string(),
            row.others_wrong.to_string(),
            format!("{} ({})", row.crashes, row.crashes_later),
            row.hangs.to_string(),
        ]);
    }
    table
}
