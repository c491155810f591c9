//! redis' own tests, on this machine and without a device: they need Tcl, which guests do not have.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::run_program;
use crate::build::Builds;
use crate::plan::{Mode, SuiteFile};

/// How long a file may take, scaled by what the machine takes longer; the longest takes two minutes.
const LIMIT: Duration = Duration::from_secs(900);
/// The first port that tests use; each build has as many.
const PORTS: u16 = 31_000;
const PORT_COUNT: u16 = 1000;
/// Files of the tests that are run. Left out are those of clusters, replication, sentinels, modules, files (AOF, RDB) and TLS.
const FILES: [&str; 40] = [
    "unit/acl",
    "unit/acl-v2",
    "unit/auth",
    "unit/bitfield",
    "unit/bitops",
    "unit/client-eviction",
    "unit/dump",
    "unit/expire",
    "unit/functions",
    "unit/geo",
    "unit/hyperloglog",
    "unit/info",
    "unit/info-command",
    "unit/introspection",
    "unit/introspection-2",
    "unit/keyspace",
    "unit/latency-monitor",
    "unit/lazyfree",
    "unit/limits",
    "unit/maxmemory",
    "unit/memefficiency",
    "unit/multi",
    "unit/other",
    "unit/protocol",
    "unit/pubsub",
    "unit/scan",
    "unit/scripting",
    "unit/slowlog",
    "unit/sort",
    "unit/tracking",
    "unit/type/hash",
    "unit/type/incr",
    "unit/type/list",
    "unit/type/list-2",
    "unit/type/list-3",
    "unit/type/set",
    "unit/type/stream",
    "unit/type/stream-cgroups",
    "unit/type/string",
    "unit/type/zset",
];
/// Tests that are left out, by their tags.
const TAGS: &str = "-slow -needs:repl -needs:save -large-memory -cluster";
/// Tests that are left out, by what is in them: they need what the port has not.
const NEEDS: [&str; 11] = [
    "attach_to_replication_stream",
    "appendonly",
    "bgrewriteaof",
    "bgsave",
    "debug loadaof",
    "migrate",
    "replicaof",
    "slaveof",
    "waitaof",
    "activedefrag",
    "flushall async",
];

/// Runs the tests of a build, those whose file's name contains `only`.
pub(super) fn run(
    builds: &Builds,
    mode: Mode,
    only: &str,
    found: &mut dyn FnMut(SuiteFile) -> Result<()>,
) -> Result<()> {
    let folder = builds.folder(mode);
    let skipped = builds.place().join("skipped-tests");
    let mut names = Vec::new();
    for file in FILES {
        let text = fs::read_to_string(folder.join(format!("tests/{file}.tcl")))?;
        names.extend(needy(&text).into_iter().map(str::to_owned));
    }
    fs::write(&skipped, names.join("\n"))?;
    let port = PORTS + if mode == Mode::Plain { 0 } else { PORT_COUNT };
    for file in FILES {
        if file.contains(only) {
            found(one(folder, mode, file, &skipped, port)?)?;
        }
    }
    Ok(())
}

/// Names of the tests of a file that need what the port has not.
fn needy(text: &str) -> Vec<&str> {
    let tests = text.split("\n").fold(Vec::new(), |mut tests, line| {
        let words = line.trim_start();
        let name = words
            .strip_prefix("test {")
            .and_then(|rest| rest.split('}').next())
            .or_else(|| {
                words
                    .strip_prefix("test \"")
                    .and_then(|rest| rest.split('"').next())
            });
        match (name, tests.last_mut()) {
            (Some(name), _) => tests.push((name, false)),
            (None, Some((_, is_needy))) => {
                let line = words.to_ascii_lowercase();
                *is_needy |= NEEDS.iter().any(|need| line.contains(need));
            }
            (None, None) => {}
        }
        tests
    });
    let needy = tests.into_iter().filter(|(_, is_needy)| *is_needy);
    needy.map(|(name, _)| name).collect()
}

fn one(folder: &Path, mode: Mode, file: &str, skipped: &Path, port: u16) -> Result<SuiteFile> {
    let mut tcl = Command::new("tclsh");
    tcl.args(["tests/test_helper.tcl", "--clients", "1", "--single", file])
        .args(["--tags", TAGS, "--skipfile"])
        .arg(skipped)
        .args(["--baseport", &port.to_string()])
        .args(["--portcount", &PORT_COUNT.to_string()]);
    let outcome = run_program(&mut tcl, folder, LIMIT)?;
    let text = without_colours(&outcome.text);
    let count = |mark: &str| text.lines().filter(|line| line.starts_with(mark)).count() as u32;
    let mut failures: Vec<String> = text
        .lines()
        .filter_map(|line| {
            let failure = line.strip_prefix("[err]: ");
            failure.or_else(|| line.strip_prefix("[exception]: "))
        })
        .map(|line| line.chars().take(200).collect())
        .collect();
    let passed = count("[ok]");
    if outcome.success.is_none() {
        failures.push(format!("no end after {LIMIT:?}, scaled"));
    }
    if outcome.success == Some(false) && failures.is_empty() {
        let last: Vec<_> = text.lines().rev().take(2).collect();
        failures.push(last.join(" | "));
    }
    let is_empty = passed == 0 && failures.is_empty();
    Ok(SuiteFile {
        mode,
        shards: 1,
        file: file.to_owned(),
        passed,
        failed: failures.len() as u32,
        skipped: is_empty.then(|| "all of its tests are left out".to_owned()),
        failures,
        seconds: 0.0,
    })
}

/// The text of a terminal.
fn without_colours(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_that_need_more_are_found() {
        let text = "test {one} {\n r get a\n}\n  test {two - b} {\n r BGSAVE\n}\ntest \"three\" {\n slaveof\n";
        assert_eq!(needy(text), ["two - b", "three"]);
    }

    #[test]
    fn colours_are_left_out() {
        assert_eq!(without_colours("[\u{1b}[0;32mok\u{1b}[0m]: x"), "[ok]: x");
    }
}
