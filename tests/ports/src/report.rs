//! `target/ports/SERVER/report.json`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::build::Builds;
use crate::plan::{Errors, Finding, Load, Mode, Part, Server, SuiteFile};

/// The report. Parts that a run leaves out are those of earlier runs.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    version: String,
    lines_added: u64,
    lines_removed: u64,
    own_suite: BTreeMap<Mode, Suite>,
    load: Vec<Load>,
    throughput: Vec<Row>,
    errors_injected: u64,
    others_harmed: u64,
    restarts: u64,
    errors: Vec<Errors>,
}

/// The server's own suite.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Suite {
    passed: u32,
    failed: u32,
    files_skipped: u32,
    files: Vec<SuiteFile>,
}

impl Suite {
    /// Adds a file, in place of what an earlier run has found of it.
    fn add(&mut self, file: SuiteFile) {
        self.files.retain(|earlier| earlier.file != file.file);
        self.files.push(file);
        self.passed = self.files.iter().map(|file| file.passed).sum();
        self.failed = self.files.iter().map(|file| file.failed).sum();
        let skipped = self.files.iter().filter(|file| file.skipped.is_some());
        self.files_skipped = skipped.count() as u32;
    }
}

/// Commands per second of the server's CPU time.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    mix: String,
    value_bytes: usize,
    vcpus: u32,
    plain: f64,
    protected: f64,
}

impl Report {
    /// The report of earlier runs, for these builds.
    pub(crate) fn load(folder: &Path, builds: &Builds) -> Self {
        let text = fs::read_to_string(folder.join("report.json")).unwrap_or_default();
        Self {
            version: builds.version.clone(),
            lines_added: builds.lines_added,
            lines_removed: builds.lines_removed,
            ..serde_json::from_str(&text).unwrap_or_default()
        }
    }

    /// Forgets what earlier runs have found of a part that runs now.
    pub(crate) fn begin(&mut self, part: &Part) {
        match part {
            // Otherwise what it has of the other files stays.
            Part::Suite {
                mode, only, done, ..
            } if only.is_empty() && done.is_empty() => drop(self.own_suite.remove(mode)),
            // What earlier runs have found of a seed stays until this one has something.
            Part::Suite { .. } | Part::Errors { .. } => {}
            Part::Throughput { vcpus, .. } => self.throughput.retain(|row| row.vcpus != *vcpus),
            Part::Load => self.load.clear(),
            Part::Bugs { .. } => self
                .errors
                .retain(|errors| errors.class.starts_with(INJECTOR)),
        }
    }

    /// Files of the suite that it has.
    pub(crate) fn files_done(&self, mode: Mode) -> Vec<String> {
        let files = self
            .own_suite
            .get(&mode)
            .map_or(&[][..], |suite| &suite.files);
        files.iter().map(|file| file.file.clone()).collect()
    }

    /// Errors that the injector has made, and a seed after all of those that it has made them with.
    pub(crate) fn injected(&self) -> (u64, Option<u64>) {
        let made = self.errors.iter().filter_map(|errors| {
            let seed = errors.class.strip_prefix(&injector_with(""))?;
            Some((seed.parse::<u64>().ok()?, errors.injected))
        });
        made.fold((0, None), |(sum, next), (seed, injected)| {
            (sum + injected, next.max(seed.checked_add(1)))
        })
    }

    /// Adds what was found.
    pub(crate) fn add(&mut self, finding: Finding) {
        match finding {
            Finding::Suite(file) => {
                self.own_suite.entry(file.mode).or_default().add(file);
            }
            Finding::Throughput(one) => {
                let mix = one.mix;
                let place = self.throughput.iter().position(|row| {
                    row.mix == mix && row.value_bytes == one.value_bytes && row.vcpus == one.vcpus
                });
                let place = place.unwrap_or_else(|| {
                    self.throughput.push(Row {
                        mix,
                        value_bytes: one.value_bytes,
                        vcpus: one.vcpus,
                        plain: 0.0,
                        protected: 0.0,
                    });
                    self.throughput.len() - 1
                });
                let rate = (1e9 / one.nanoseconds).round();
                match one.mode {
                    Mode::Plain => self.throughput[place].plain = rate,
                    Mode::Protected => self.throughput[place].protected = rate,
                }
            }
            Finding::Load(load) => self.load.push(load),
            Finding::Errors(errors) => {
                // It may have come in part.
                self.errors.retain(|earlier| earlier.class != errors.class);
                self.errors.push(errors);
            }
        }
        self.errors_injected = self.errors.iter().map(|errors| errors.injected).sum();
        self.others_harmed = self.errors.iter().map(|errors| errors.others_harmed).sum();
        self.restarts = self.errors.iter().map(|errors| errors.restarts).sum();
    }

    /// For people.
    pub(crate) fn summary(&self, server: Server) -> String {
        let mut text = format!(
            "{} {}: {} lines added, {} removed\n",
            server.name(),
            self.version,
            self.lines_added,
            self.lines_removed
        );
        let mut line = |words: String| {
            let _ = writeln!(text, "{words}");
        };
        for (mode, suite) in &self.own_suite {
            line(format!(
                "own suite, {}: {} passed, {} failed, {} files skipped",
                mode.name(),
                suite.passed,
                suite.failed,
                suite.files_skipped
            ));
            for file in suite.files.iter().filter(|file| !file.failures.is_empty()) {
                line(format!("  {}: {}", file.file, file.failures.join("; ")));
            }
        }
        for row in &self.throughput {
            line(format!(
                "{}, {} bytes, {} vCPUs: {:.0} plain, {:.0} protected, {:.3}",
                row.mix,
                row.value_bytes,
                row.vcpus,
                row.plain,
                row.protected,
                row.protected / row.plain
            ));
        }
        for load in &self.load {
            line(format!(
                "{} ({}): code {:?}",
                load.command,
                load.mode.name(),
                load.code
            ));
        }
        for errors in &self.errors {
            line(format!(
                "{}{}: {} injected ({} of them not reported), {} lost, {} without effect, {} own wrong, {} not reached, {} others harmed, {} restarts, \
                 {} ordinary commands",
                errors.class,
                if errors.ended { "" } else { " (interrupted)" },
                errors.injected,
                errors.unreported,
                errors.request_lost,
                errors.no_effect,
                errors.own_wrong,
                errors.not_reached,
                errors.others_harmed,
                errors.restarts,
                errors.ordinary
            ));
            errors
                .complaints
                .iter()
                .for_each(|complaint| line(format!("  ! {complaint}")));
        }
        text
    }

    /// # Errors
    ///
    /// When others were harmed, or the server ended.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(
            self.others_harmed == 0 && self.restarts == 0,
            "{} others harmed, {} restarts",
            self.others_harmed,
            self.restarts
        );
        Ok(())
    }
}

/// Starts the class of what the injector has made.
const INJECTOR: &str = "injector";

/// The class of what the injector has made with a seed.
pub(crate) fn injector(seed: u64) -> String {
    injector_with(&seed.to_string())
}

fn injector_with(seed: &str) -> String {
    format!("{INJECTOR}, seed {seed}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, failed: u32) -> SuiteFile {
        SuiteFile {
            mode: Mode::Plain,
            shards: 1,
            file: name.to_owned(),
            passed: 3,
            failed,
            skipped: None,
            failures: Vec::new(),
            seconds: 0.0,
        }
    }

    fn suite(only: &str, done: Vec<String>) -> Part {
        Part::Suite {
            mode: Mode::Plain,
            shards: 1,
            only: only.to_owned(),
            done,
        }
    }

    #[test]
    fn a_file_that_runs_again_takes_the_place_of_its_earlier_result() {
        let mut report = Report::default();
        for file in [file("a.t", 1), file("b.t", 0), file("a.t", 0)] {
            report.add(Finding::Suite(file));
        }
        let plain = &report.own_suite[&Mode::Plain];
        assert_eq!((plain.passed, plain.failed), (6, 0));
        assert_eq!(report.files_done(Mode::Plain), ["b.t", "a.t"]);
        assert!(report.files_done(Mode::Protected).is_empty());
    }

    #[test]
    fn a_part_of_the_suite_leaves_the_results_of_the_other_files() {
        let mut report = Report::default();
        report.add(Finding::Suite(file("a.t", 0)));
        report.begin(&suite("b", Vec::new()));
        report.begin(&suite("", report.files_done(Mode::Plain)));
        assert_eq!(report.files_done(Mode::Plain), ["a.t"]);
        report.begin(&suite("", Vec::new()));
        assert!(report.files_done(Mode::Plain).is_empty());
    }

    #[test]
    fn errors_that_were_found_in_part_are_replaced_and_counted_once() {
        let mut report = Report::default();
        assert_eq!(report.injected(), (0, None));
        for (seed, injected, ended) in [(3, 50, false), (3, 100, true), (7, 30, false)] {
            report.add(Finding::Errors(Errors {
                class: injector(seed),
                injected,
                ended,
                ..Errors::default()
            }));
        }
        report.add(Finding::Errors(Errors {
            class: "a bug".to_owned(),
            injected: 5,
            ..Errors::default()
        }));
        assert_eq!(report.injected(), (130, Some(8)));
        assert_eq!((report.errors.len(), report.errors_injected), (3, 135));
    }

    #[test]
    fn measurements_with_other_numbers_of_vcpus_stay() {
        let mut report = Report::default();
        for (vcpus, mode) in [(1, Mode::Plain), (1, Mode::Protected), (2, Mode::Plain)] {
            report.add(Finding::Throughput(crate::plan::Throughput {
                mode,
                mix: "95/5".to_owned(),
                value_bytes: 100,
                vcpus,
                nanoseconds: 20_000.0,
                commands: 1,
            }));
        }
        report.begin(&Part::Throughput {
            commands: 1,
            vcpus: 2,
        });
        let rows: Vec<_> = report.throughput.iter().map(|row| row.vcpus).collect();
        assert_eq!(rows, [1]);
    }
}
