//! Builds memcached from Debian's source: plain, and edited.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use vmsrs_bed::{Bed, project};
use vmsrs_report::steps::Steps;

use crate::plan::Mode;

/// Our files, by their path from the project's root.
const PORT: &str = "tests/ports/memcached";
/// Those of them that are compiled apart, without their ending.
const PARTS: [&str; 5] = [
    "vmsrs_command",
    "vmsrs_item",
    "vmsrs_region",
    "vmsrs_request",
    "vmsrs_shard",
];
/// Those that memcached's own sources include, and those that take the place of some.
const OTHERS: [&str; 5] = [
    "vmsrs_port.h",
    "vmsrs_request.h",
    "vmsrs_crawl.h",
    "assoc.c",
    "slabs.c",
];
/// What is not built: other protocols' libraries, and storage on disks.
const CONFIGURE: [&str; 3] = ["--disable-docs", "--disable-extstore", "--disable-coverage"];

/// The builds.
pub(crate) struct Builds {
    folder: PathBuf,
    plain: PathBuf,
    protected: PathBuf,
    attacked: Option<PathBuf>,
    /// Of the source.
    pub(crate) version: String,
    /// Lines that the port adds: ours, and those of the edits.
    pub(crate) lines_added: u64,
    /// Lines of the source that are gone or changed.
    pub(crate) lines_removed: u64,
}

impl Builds {
    /// Fetches the source and builds what has changed. With `attacked` also the build that errors are injected into.
    pub(crate) fn make(bed: &Bed, steps: &Steps, folder: &Path, attacked: bool) -> Result<Self> {
        let source = bed.source("memcached")?;
        let name = source.file_name().unwrap_or_default().to_string_lossy();
        let version = name.rsplit('-').next().unwrap_or_default().to_owned();
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;

        let plain = folder.join("plain");
        build(steps, "build memcached", &source, &plain, &[], |tree| {
            make(tree, &["memcached", "memcached-debug", "timedrun"], &[])
        })?;
        let protected = folder.join("protected");
        let scripts = ["edit.pl"];
        let (lines_added, lines_removed) = build(
            steps,
            "build memcached, ported",
            &plain,
            &protected,
            &scripts,
            |tree| {
                port(tree, &["memcached", "memcached-debug"])?;
                make(tree, &["timedrun"], &[include_flag()])
            },
        )?;
        let attacked = match attacked {
            false => None,
            true => {
                let tree = folder.join("attacked");
                let scripts = ["edit.pl", "bugs.pl"];
                build(
                    steps,
                    "build memcached with bugs",
                    &plain,
                    &tree,
                    &scripts,
                    |tree| port(tree, &["memcached"]),
                )?;
                Some(tree.join("memcached"))
            }
        };
        Ok(Self {
            folder: folder.to_owned(),
            plain,
            protected,
            attacked,
            version,
            lines_added,
            lines_removed,
        })
    }

    /// The folder of a build.
    pub(crate) fn folder(&self, mode: Mode) -> &Path {
        match mode {
            Mode::Plain => &self.plain,
            Mode::Protected => &self.protected,
        }
    }

    /// The program that errors are injected into.
    pub(crate) fn attacked(&self) -> Option<&Path> {
        self.attacked.as_deref()
    }

    /// Where all is built.
    pub(crate) fn place(&self) -> &Path {
        &self.folder
    }
}

/// Our files that the edited sources need.
fn sources() -> Vec<String> {
    let parts = PARTS.map(|part| format!("{part}.c"));
    parts.into_iter().chain(OTHERS.map(str::to_owned)).collect()
}

fn include_flag() -> String {
    format!(
        "CPPFLAGS=-I{}",
        project::root().join("guest-lib/include").display()
    )
}

/// A file in a tree that is built: what it was built from.
const STAMP: &str = ".built-from";

/// Copies the source to `tree`, edits it and builds it, unless that is there already. Returns the lines that are added and
/// removed. The source of a port is the plain build, which is configured.
fn build(
    steps: &Steps,
    name: &str,
    source: &Path,
    tree: &Path,
    scripts: &[&str],
    compile: impl FnOnce(&Path) -> Result<()>,
) -> Result<(u64, u64)> {
    let place = project::root().join(PORT);
    let header = project::root().join("guest-lib/include/vmsrs.h");
    let read =
        |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let mut inputs = format!("{}\n{CONFIGURE:?}\n", source.display());
    // What a port's source was built from.
    inputs.push_str(&fs::read_to_string(source.join(STAMP)).unwrap_or_default());
    let sources = match scripts {
        [] => Vec::new(),
        _ => sources(),
    };
    if !scripts.is_empty() {
        inputs.push_str(&read(&header)?);
    }
    for file in sources
        .iter()
        .map(String::as_str)
        .chain(scripts.iter().copied())
    {
        inputs.push_str(&read(&place.join(file))?);
    }
    let stamp = tree.join(STAMP);
    if let Ok(text) = fs::read_to_string(&stamp)
        && let Some((lines, rest)) = text.split_once('\n')
        && rest == inputs
        && let Some((added, removed)) = lines.split_once(' ')
    {
        return Ok((added.parse()?, removed.parse()?));
    }
    let step = steps.begin(name);
    if tree.exists() {
        fs::remove_dir_all(tree).with_context(|| format!("remove {}", tree.display()))?;
    }
    // With its times: make must not think that what `configure` comes from is newer.
    output(Command::new("cp").arg("-a").arg(source).arg(tree))?;
    for file in &sources {
        fs::copy(place.join(file), tree.join(file)).with_context(|| format!("copy {file}"))?;
    }
    for script in scripts {
        output(Command::new("perl").arg(place.join(script)).arg(tree))?;
    }
    let (added, removed) = changed_lines(source, tree)?;
    compile(tree)?;
    fs::write(&stamp, format!("{added} {removed}\n{inputs}"))
        .with_context(|| format!("write {}", stamp.display()))?;
    step.end(&format!("{added} lines added, {removed} removed"));
    Ok((added, removed))
}

/// Configures and makes targets.
fn make(tree: &Path, targets: &[&str], variables: &[String]) -> Result<()> {
    if !tree.join("Makefile").exists() {
        output(
            Command::new("./configure")
                .arg("--quiet")
                .args(CONFIGURE)
                .current_dir(tree),
        )?;
    }
    let jobs = format!(
        "-j{}",
        std::thread::available_parallelism().map_or(1, usize::from)
    );
    output(
        Command::new("make")
            .arg("--quiet")
            .arg(jobs)
            .args(variables)
            .args(targets)
            .current_dir(tree),
    )
    .map(drop)
}

/// Makes programs with the port in them.
fn port(tree: &Path, targets: &[&str]) -> Result<()> {
    make(tree, &["memcached_debug-util.o"], &[include_flag()])?;
    let include = project::root().join("guest-lib/include");
    for part in PARTS {
        output(
            Command::new("cc")
                .args(["-DHAVE_CONFIG_H", "-I.", "-I"])
                .arg(&include)
                .args([
                    "-g",
                    "-O2",
                    "-Wall",
                    "-Wextra",
                    "-Werror",
                    "-Wno-unused-parameter",
                    "-Wno-sign-compare",
                ])
                .args(["-pthread", "-c", &format!("{part}.c")])
                .args(["-o", &format!("{part}.o")])
                .current_dir(tree),
        )?;
    }
    let library = project::built("libvmsrs.so")?;
    let folder = library.parent().unwrap_or(Path::new("/"));
    // By name, since its path in the guest is another one; and nothing is to be resolved in requests.
    let libraries = format!(
        "LIBS=-levent {} -L{} -lvmsrs -Wl,-z,now",
        PARTS.map(|part| format!("{part}.o")).join(" "),
        folder.display()
    );
    make(tree, targets, &[include_flag(), libraries])
}

/// Lines that are added and removed, those of our own files among them.
fn changed_lines(source: &Path, tree: &Path) -> Result<(u64, u64)> {
    let mut diff = Command::new("diff");
    diff.args(["-ruN", "--exclude=*.o"]);
    diff.arg(format!("--exclude={STAMP}")).arg(source).arg(tree);
    let out = diff.output().context("diff")?;
    ensure!(
        out.status.code().is_some_and(|code| code < 2),
        "diff failed"
    );
    let text = String::from_utf8_lossy(&out.stdout);
    let (mut added, mut removed) = (0, 0);
    for line in text.lines() {
        match line.as_bytes() {
            [b'+', b'+', b'+', ..] | [b'-', b'-', b'-', ..] => {}
            [b'+', ..] => added += 1,
            [b'-', ..] => removed += 1,
            _ => {}
        }
    }
    Ok((added, removed))
}

/// Runs a command to its end.
fn output(command: &mut Command) -> Result<Vec<u8>> {
    let out = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    if !out.status.success() {
        bail!(
            "{command:?}: {}\n{}{}",
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(out.stdout)
}
