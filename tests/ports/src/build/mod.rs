//! Builds servers from Debian's sources: plain, and edited.

mod memcached;
mod mosquitto;
mod redis;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use vmsrs_bed::{Bed, project};
use vmsrs_report::steps::Steps;

use crate::plan::{Mode, Server};

/// Where the ports are, from the project's root.
const PORTS: &str = "tests/ports";
/// What every port's script needs.
const EDIT: &str = "common/Edit.pm";

/// How a server is built.
struct Recipe {
    /// How the plain build is configured: another one is built anew.
    configuration: String,
    /// Our files, from [`PORTS`], and where they go in the tree.
    files: Vec<(String, String)>,
    /// Builds the tree plain.
    plain: fn(&Path) -> Result<()>,
    /// Builds the edited tree, with all that is needed of it.
    protected: fn(&Path) -> Result<()>,
    /// Builds the server alone, edited and with bugs.
    attacked: fn(&Path) -> Result<()>,
    /// The server's program, from the tree.
    program: &'static str,
}

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
    pub(crate) fn make(
        bed: &Bed,
        steps: &Steps,
        server: Server,
        folder: &Path,
        attacked: bool,
    ) -> Result<Self> {
        let recipe = match server {
            Server::Memcached => memcached::recipe(),
            Server::Mosquitto => mosquitto::recipe(),
            Server::Redis => redis::recipe(),
        };
        let source = bed.source(server.name())?;
        let name = source.file_name().unwrap_or_default().to_string_lossy();
        let version = name.rsplit('-').next().unwrap_or_default().to_owned();
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;

        let build = |kind: &str, source: &Path, scripts: &[&str], compile| {
            let step = format!("build {}, {kind}", server.name());
            let tree = folder.join(kind);
            let scripts: Vec<String> = scripts
                .iter()
                .map(|script| format!("{}/{script}", server.name()))
                .collect();
            let lines = build(steps, &step, &recipe, source, &tree, &scripts, compile)?;
            anyhow::Ok((tree, lines))
        };
        let (plain, _) = build("plain", &source, &[], recipe.plain)?;
        let (protected, (lines_added, lines_removed)) =
            build("protected", &plain, &["edit.pl"], recipe.protected)?;
        let attacked = match attacked {
            false => None,
            true => {
                let (tree, _) =
                    build("attacked", &plain, &["edit.pl", "bugs.pl"], recipe.attacked)?;
                Some(tree.join(recipe.program))
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

/// The folder with the library's header.
fn include() -> PathBuf {
    project::root().join("guest-lib/include")
}

/// A file in a tree that is built: what it was built from.
const STAMP: &str = ".built-from";

/// Copies the source to `tree`, edits it and builds it, unless that is there already. Returns the lines that are added and
/// removed. The source of a port is the plain build, which is configured.
fn build(
    steps: &Steps,
    name: &str,
    recipe: &Recipe,
    source: &Path,
    tree: &Path,
    scripts: &[String],
    compile: fn(&Path) -> Result<()>,
) -> Result<(u64, u64)> {
    let place = project::root().join(PORTS);
    let read =
        |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let mut inputs = format!("{}\n{}\n", source.display(), recipe.configuration);
    // What a port's source was built from.
    inputs.push_str(&fs::read_to_string(source.join(STAMP)).unwrap_or_default());
    let files: &[(String, String)] = match scripts {
        [] => &[],
        _ => &recipe.files,
    };
    if !scripts.is_empty() {
        inputs.push_str(&read(&include().join("vmsrs.h"))?);
        inputs.push_str(&read(&place.join(EDIT))?);
    }
    for file in files.iter().map(|(file, _)| file).chain(scripts) {
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
    for (file, target) in files {
        fs::copy(place.join(file), tree.join(target)).with_context(|| format!("copy {file}"))?;
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

/// Runs make, with as many jobs as there are CPUs.
fn make(folder: &Path, targets: &[&str], variables: &[String]) -> Result<()> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    output(
        Command::new("make")
            .arg("--quiet")
            .arg(format!("-j{jobs}"))
            .args(variables)
            .args(targets)
            .current_dir(folder),
    )
    .map(drop)
}

/// Compiles our files of a port, without their ending, with these flags.
fn compile(folder: &Path, parts: &[&str], flags: &[&str]) -> Result<()> {
    for part in parts {
        output(
            Command::new("cc")
                .args(["-g", "-O2", "-Wall", "-Wextra", "-Werror"])
                .args(["-Wno-unused-parameter", "-Wno-sign-compare"])
                .args(flags)
                .args(["-I.", "-I"])
                .arg(include())
                .args(["-pthread", "-c", &format!("{part}.c")])
                .args(["-o", &format!("{part}.o")])
                .current_dir(folder),
        )?;
    }
    Ok(())
}

/// What links our files and the library: the library by name, since its path in the guest is another one; and nothing is to
/// be resolved in requests.
fn linked(parts: &[&str]) -> Result<String> {
    let library = project::built("libvmsrs.so")?;
    let folder = library.parent().unwrap_or(Path::new("/"));
    let objects: Vec<String> = parts.iter().map(|part| format!("{part}.o")).collect();
    Ok(format!(
        "{} -L{} -lvmsrs -Wl,-z,now",
        objects.join(" "),
        folder.display()
    ))
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
