//! The instructions of the main rows, compared with those that are checked in.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use vmsrs_bed::project;
use vmsrs_report::table::{Table, numbers, words};

use crate::sample::{Measured, What};

/// By its path from the project's root.
const FILE: &str = "tests/bench/baseline.json";

/// How far a row may be from the baseline, in percent.
const TOLERANCE: f64 = 5.0;

/// Instructions by row.
type Rows = BTreeMap<String, u64>;

fn file() -> PathBuf {
    project::root().join(FILE)
}

/// The rows that were measured.
fn rows(measured: &[Measured]) -> Rows {
    let rows = measured
        .iter()
        .filter(|one| one.sample.protected && one.sample.what != What::Nothing);
    rows.map(|one| (one.name(), one.sample.nanoseconds.round() as u64))
        .collect()
}

/// Makes what was measured the baseline.
pub(crate) fn renew(measured: &[Measured]) -> Result<()> {
    let rows = rows(measured);
    let path = file();
    if path.exists() {
        let (text, _) = compare(&read(&path)?, &rows);
        print!("{text}");
    }
    let text = serde_json::to_string_pretty(&rows)? + "\n";
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    println!("the new baseline: {}", path.display());
    Ok(())
}

/// Prints what changed.
///
/// # Errors
///
/// When a row is further from the baseline than it may be, or is missing on either side.
pub(crate) fn check(measured: &[Measured]) -> Result<()> {
    let (text, changed) = compare(&read(&file())?, &rows(measured));
    print!("{text}");
    ensure!(
        changed.is_empty(),
        "more than {TOLERANCE} % from {FILE}: {}; if that is meant, run `make baseline` and commit it",
        changed.join(", ")
    );
    Ok(())
}

fn read(path: &Path) -> Result<Rows> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))
}

/// A table of all rows, and the names of those that are too far from the baseline.
fn compare(baseline: &Rows, now: &Rows) -> (String, Vec<String>) {
    let mut table = Table::markdown(&[
        words("instructions"),
        numbers("baseline"),
        numbers("now"),
        numbers("change"),
        words(""),
    ]);
    let mut changed = Vec::new();
    let mut names: Vec<&String> = baseline.keys().chain(now.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let number = |rows: &Rows| {
            rows.get(name)
                .map_or_else(|| "-".to_owned(), ToString::to_string)
        };
        let change = match (baseline.get(name), now.get(name)) {
            (Some(&then), Some(&now)) if then > 0 => Some((now as f64 / then as f64 - 1.0) * 100.0),
            _ => None,
        };
        let verdict = match change {
            Some(change) if change.abs() <= TOLERANCE => "",
            Some(change) if change > 0.0 => "dearer",
            Some(_) => "cheaper: renew the baseline",
            None => "only on one side",
        };
        if !verdict.is_empty() {
            changed.push(name.clone());
        }
        let mut percent = String::new();
        if let Some(change) = change {
            let _ = write!(percent, "{change:+.1} %");
        }
        table.row([
            name.clone(),
            number(baseline),
            number(now),
            percent,
            verdict.to_owned(),
        ]);
    }
    (table.to_string(), changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(all: &[(&str, u64)]) -> Rows {
        all.iter()
            .map(|&(name, value)| (name.to_owned(), value))
            .collect()
    }

    #[test]
    fn what_is_too_far_from_the_baseline_is_named() {
        let then = rows(&[("a", 1000), ("b", 1000), ("c", 1000), ("gone", 7)]);
        let now = rows(&[("a", 1049), ("b", 1051), ("c", 940), ("new", 7)]);
        let (text, changed) = compare(&then, &now);
        assert_eq!(changed, ["b", "c", "gone", "new"]);
        assert!(text.contains("+4.9 %"), "{text}");
    }

    #[test]
    fn the_baseline_that_is_checked_in_is_readable() {
        assert!(!read(&file()).unwrap().is_empty());
    }
}
