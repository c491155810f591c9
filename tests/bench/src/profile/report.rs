//! A profile's table and flame graphs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use inferno::flamegraph::{self, Options};
use serde::Serialize;

use super::facts::Level;
use super::symbols::Place;

/// Functions in a table.
const ROWS: usize = 40;

/// What was counted of one measurement.
#[derive(Debug)]
pub(crate) struct Phase {
    name: String,
    rounds: u32,
    counts: BTreeMap<Place, u64>,
}

/// A function's share, as `report.json` has it.
#[derive(Serialize)]
struct Row<'a> {
    level: &'static str,
    object: &'a str,
    function: &'a str,
    /// Instructions for each round.
    instructions: f64,
}

#[derive(Serialize)]
struct PhaseReport<'a> {
    name: &'a str,
    rounds: u32,
    instructions: f64,
    levels: BTreeMap<&'static str, f64>,
    functions: Vec<Row<'a>>,
}

impl Phase {
    pub(crate) fn new(name: String, protected: bool, rounds: u32) -> Self {
        let name = match protected {
            true => name,
            false => format!("{name} (plain)"),
        };
        Self {
            name,
            rounds,
            counts: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, place: Place, instructions: u64) {
        *self.counts.entry(place).or_default() += instructions;
    }

    fn each(&self, instructions: u64) -> f64 {
        instructions as f64 / f64::from(self.rounds)
    }

    fn report(&self) -> PhaseReport<'_> {
        let mut rows: Vec<(&Place, u64)> = self
            .counts
            .iter()
            .map(|(place, &count)| (place, count))
            .collect();
        rows.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        let of = |level: Option<Level>| {
            let counts = self.counts.iter().filter(|(place, _)| place.level == level);
            self.each(counts.map(|(_, count)| count).sum())
        };
        let levels = Level::ALL.into_iter().map(Some).chain([None]);
        PhaseReport {
            name: &self.name,
            rounds: self.rounds,
            instructions: self.each(self.counts.values().sum()),
            levels: levels.map(|level| (level_name(level), of(level))).collect(),
            functions: rows
                .into_iter()
                .map(|(place, count)| Row {
                    level: level_name(place.level),
                    object: &place.object,
                    function: &place.function,
                    instructions: self.each(count),
                })
                .collect(),
        }
    }

    /// One line for each function, as flame graphs are made from: level, object, function, instructions of a round.
    fn folded(&self) -> Vec<String> {
        let clean = |text: &str| text.replace([';', '\n'], ":");
        self.counts
            .iter()
            .filter_map(|(place, &count)| {
                let count = self.each(count).round() as u64;
                let object = match place.object.as_str() {
                    "" => "kernel",
                    object => object,
                };
                let function = clean(&place.function);
                let level = level_name(place.level);
                (count > 0).then(|| format!("{level};{};{function} {count}", clean(object)))
            })
            .collect()
    }

    /// A file's name made of the phase's.
    fn file_stem(&self) -> String {
        let mut stem: String = self
            .name
            .chars()
            .map(|letter| {
                if letter.is_ascii_alphanumeric() {
                    letter
                } else {
                    '-'
                }
            })
            .collect();
        while stem.contains("--") {
            stem = stem.replace("--", "-");
        }
        stem.trim_matches('-').to_owned()
    }
}

fn level_name(level: Option<Level>) -> &'static str {
    level.map_or("unknown", Level::name)
}

/// Writes `profile.txt`, `report.json` and a flame graph for each phase; returns the path of the first.
pub(crate) fn write(folder: &Path, phases: &[Phase]) -> Result<PathBuf> {
    let counted: Vec<&Phase> = phases
        .iter()
        .filter(|phase| !phase.counts.is_empty())
        .collect();
    let reports: Vec<PhaseReport<'_>> = counted.iter().map(|phase| phase.report()).collect();
    fs::write(
        folder.join("report.json"),
        serde_json::to_string_pretty(&reports)? + "\n",
    )?;
    let path = folder.join("profile.txt");
    fs::write(&path, table(&reports)).with_context(|| format!("write {}", path.display()))?;
    for phase in counted {
        let lines = phase.folded();
        if lines.is_empty() {
            continue;
        }
        let mut options = Options::default();
        options.title.clone_from(&phase.name);
        options.count_name = "instructions".to_owned();
        let file = folder.join(phase.file_stem() + ".svg");
        let writer = File::create(&file).with_context(|| format!("create {}", file.display()))?;
        flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), writer)
            .with_context(|| format!("draw {}", file.display()))?;
    }
    Ok(path)
}

fn table(reports: &[PhaseReport<'_>]) -> String {
    let mut text = String::new();
    for report in reports {
        let _ = writeln!(
            text,
            "{}: {:.0} instructions a round, {} rounds",
            report.name, report.instructions, report.rounds
        );
        for (level, instructions) in report
            .levels
            .iter()
            .filter(|(_, instructions)| **instructions >= 0.5)
        {
            let _ = writeln!(text, "  {instructions:>12.0}  {level}");
        }
        let _ = writeln!(text);
        for row in report
            .functions
            .iter()
            .take(ROWS)
            .filter(|row| row.instructions >= 0.5)
        {
            let object = match row.object {
                "" => String::new(),
                object => format!(" [{object}]"),
            };
            let _ = writeln!(
                text,
                "  {:>12.1}  {:<12}  {}{object}",
                row.instructions, row.level, row.function
            );
        }
        let _ = writeln!(text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(level: Level, object: &str, function: &str) -> Place {
        Place {
            level: Some(level),
            object: object.to_owned(),
            function: function.to_owned(),
        }
    }

    #[test]
    fn a_phase_is_told_for_each_round_and_drawn() {
        let mut phase = Phase::new("writes, pages: 4".into(), true, 10);
        phase.add(place(Level::GuestKernel, "vmsrs", "page_access"), 1000);
        phase.add(place(Level::GuestUser, "vmsrs-bench", "a::b;c"), 500);
        phase.add(place(Level::GuestUser, "vmsrs-bench", "a::b;c"), 500);
        let folder = tempfile::tempdir().unwrap();
        let path = write(
            folder.path(),
            &[phase, Phase::new("nothing".into(), false, 1)],
        )
        .unwrap();
        let text = fs::read_to_string(path).unwrap();
        assert!(
            text.starts_with("writes, pages: 4: 200 instructions a round, 10 rounds\n"),
            "{text}"
        );
        assert!(text.contains("page_access [vmsrs]"));
        assert!(!text.contains("nothing"));
        let drawn = fs::read_to_string(folder.path().join("writes-pages-4.svg")).unwrap();
        assert!(drawn.contains("a::b:c"));
    }
}
