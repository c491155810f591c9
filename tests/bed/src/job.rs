//! What runs on the KVM host, and what it returns.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use crate::command::shell_quote;
use crate::error::{Error, Result};
use crate::kernel::Series;
use crate::stream::START_MARK;
use crate::{patience, results};

/// The default time limit of a job.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);
/// The default memory of the nested KVM host, in MiB.
const DEFAULT_MEMORY_MIB: u32 = 3072;
/// The default number of CPUs of the nested KVM host.
const DEFAULT_CPUS: u32 = 2;

/// A program to run on the KVM host, with the files it needs.
///
/// On both kinds of host, the program starts in the *job folder*, which holds the job's files by their relative names and is
/// first in `PATH`. The environment has
///
/// - `VMSRS_RESULTS`: the path of a file; each line appended to it comes back as [`Event::Result`] and in
///   [`Outcome::results`]. Any process of the job may open it for appending, as in the shell's
///   `echo done >>"$VMSRS_RESULTS"`. The lines `@start` ([`Job::timeout`]) and `@exit CODE` are special.
/// - `VMSRS_ACCELERATOR`: [`crate::Accelerator::name`].
/// - `VMSRS_PATIENCE`: what [`patience::factor`] gives.
/// - what [`Job::env`] adds.
///
/// What the job prints comes back as [`Event::Console`], on the nested host mixed with the kernel's messages.
#[derive(Debug, Clone)]
pub struct Job {
    pub(crate) command: Vec<String>,
    pub(crate) files: Vec<JobFile>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) library_folders: Vec<PathBuf>,
    timeout: Duration,
    slowness: u32,
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
    pub(crate) deterministic: bool,
    pub(crate) cpu_model: String,
    pub(crate) plugin: Option<String>,
    pub(crate) host_series: Series,
    pub(crate) system: Option<System>,
}

/// A Debian on a disk, to be the KVM host of a job; see [`Job::on_system`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its initramfs, which mounts `/dev/vda`.
    pub initramfs: PathBuf,
    /// The raw image of the disk. It does not change: what is written is gone with the job.
    pub disk: PathBuf,
}

/// A file of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JobFile {
    pub(crate) source: PathBuf,
    pub(crate) name: String,
    pub(crate) program: bool,
}

impl Job {
    /// A job that runs `command`: a program of the job, a busybox applet or a shell builtin, and its arguments.
    pub fn new<I, S>(command: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            files: Vec::new(),
            env: Vec::new(),
            library_folders: Vec::new(),
            timeout: DEFAULT_TIMEOUT,
            slowness: 1,
            memory_mib: DEFAULT_MEMORY_MIB,
            cpus: DEFAULT_CPUS,
            deterministic: false,
            cpu_model: "max".to_owned(),
            plugin: None,
            host_series: Series::V6_1,
            system: None,
        }
    }

    /// A job of a KVM host that is a system on a disk, with its own init, which does what is to be done. The result stream is its
    /// second serial port, where it must write `@start` when it begins and `@exit CODE` in the end; then it must reboot or power
    /// off. Commands, files and environment have no meaning for it. It never uses this machine's own KVM.
    pub fn on_system(system: System) -> Self {
        Self {
            system: Some(system),
            ..Self::new(["true"])
        }
    }

    /// A job that runs a script for a POSIX shell (busybox's on the nested host).
    pub fn script(script: impl Into<String>) -> Self {
        Self::new(["sh".to_owned(), "-c".to_owned(), script.into()])
    }

    /// Adds an argument to the command.
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.command.push(argument.into());
        self
    }

    /// Adds a program with its shared libraries, under a relative name in the job folder.
    pub fn program(self, source: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        self.add(source.into(), name.into(), true)
    }

    /// Adds a file, under a relative name in the job folder.
    pub fn file(self, source: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        self.add(source.into(), name.into(), false)
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Adds a folder of this machine that is searched first for the programs' shared libraries.
    pub fn library_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.library_folders.push(folder.into());
        self
    }

    /// How long it may take once it has started, 30 minutes by default; [`patience`] scales it. After that it is killed.
    ///
    /// The time counts from the last line `@start` in the results: the host writes one before it runs the command, and
    /// the job may write more.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Multiplies the job's time limit and, through `VMSRS_PATIENCE`, the limits inside it.
    pub fn slowness(mut self, times: u32) -> Self {
        self.slowness = times;
        self
    }

    /// The memory of the nested KVM host in MiB, 3072 by default; ignored with this machine's own KVM.
    pub fn memory_mib(mut self, memory: u32) -> Self {
        self.memory_mib = memory;
        self
    }

    /// The CPUs of the nested KVM host, 2 by default; ignored with this machine's own KVM.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// The Debian kernel of the nested KVM host, 6.1 by default; ignored with this machine's own KVM.
    pub fn host_kernel(mut self, series: Series) -> Self {
        self.host_series = series;
        self
    }

    /// Runs on a nested KVM host with one CPU whose clock counts instructions, one per nanosecond, so measurements are the
    /// same on every machine. It takes longer, and never uses this machine's own KVM.
    pub fn deterministic(mut self) -> Self {
        self.deterministic = true;
        self.cpus = 1;
        self
    }

    /// The CPU of the nested KVM host as QEMU's `-cpu` takes it, `max` by default.
    pub fn cpu_model(mut self, model: impl Into<String>) -> Self {
        self.cpu_model = model.into();
        self
    }

    /// Has QEMU load this TCG plugin (`FILE[,ARGUMENT...]` as `-plugin` takes it); of deterministic jobs alone.
    pub fn plugin(mut self, plugin: impl Into<String>) -> Self {
        self.plugin = Some(plugin.into());
        self
    }

    /// # Errors
    ///
    /// [`Error::JobFileName`] for a name that would lie outside the job folder.
    pub(crate) fn check(&self) -> Result<()> {
        let plain = |name: &str| {
            !name.is_empty()
                && Path::new(name)
                    .components()
                    .all(|part| matches!(part, Component::Normal(_)))
        };
        match self.files.iter().find(|file| !plain(&file.name)) {
            None => Ok(()),
            Some(file) => Err(Error::JobFileName {
                name: file.name.clone(),
            }),
        }
    }

    /// The script that runs the job's command; it must start in the job folder.
    pub(crate) fn run_script(&self, accelerator: &str) -> String {
        let mut script = format!(
            "export PATH=\"$PWD:$PATH\" VMSRS_ACCELERATOR={accelerator} {}={}\n",
            patience::VARIABLE,
            self.patience()
        );
        for (name, value) in &self.env {
            script.push_str(&format!("export {name}={}\n", shell_quote(value)));
        }
        let command: Vec<String> = self.command.iter().map(|word| shell_quote(word)).collect();
        script.push_str(&format!(
            "echo {START_MARK} >>\"${}\"\nexec {}\n",
            results::VARIABLE,
            command.join(" ")
        ));
        script
    }

    /// How long it may take after its start.
    pub(crate) fn limit(&self) -> Duration {
        self.timeout.saturating_mul(self.patience())
    }

    fn patience(&self) -> u32 {
        patience::factor().saturating_mul(self.slowness)
    }

    fn add(mut self, source: PathBuf, name: String, program: bool) -> Self {
        self.files.push(JobFile {
            source,
            name,
            program,
        });
        self
    }
}

/// Something that happened while a job ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A line of the console, without its end.
    Console(&'a str),
    /// A line of the result stream, without its end.
    Result(&'a str),
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The exit code; 128 plus the signal's number when a signal ended it.
    pub code: i32,
    /// The lines of the result stream.
    pub results: Vec<String>,
    /// The last lines of the console.
    pub console: Vec<String>,
    /// How long it took, booting included.
    pub elapsed: Duration,
}

impl Outcome {
    /// Whether the exit code is zero.
    pub fn success(&self) -> bool {
        self.code == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_passes_words_and_environment_as_they_are() {
        let job = Job::new(["printf", "%s|%s|%s"])
            .arg("a b")
            .arg("$HOME")
            .env("X", "it's")
            .arg("x");
        let mut sh = std::process::Command::new("sh");
        sh.env(results::VARIABLE, "/dev/null");
        let script = job.run_script("test");
        assert_eq!(
            crate::command::stdout(sh.args(["-c", &script])).unwrap(),
            "a b|$HOME|x"
        );
        assert!(script.contains(r"export X='it'\''s'"));
    }

    #[test]
    fn a_slower_job_has_longer_limits() {
        let job = Job::new(["true"]).timeout(Duration::from_secs(5));
        let slower = job.clone().slowness(6);
        assert_eq!(slower.limit(), job.limit() * 6);
        let patience = 6 * patience::factor();
        assert!(
            slower
                .run_script("x")
                .contains(&format!("VMSRS_PATIENCE={patience}\n"))
        );
    }

    #[test]
    fn files_outside_the_job_folder_are_refused() {
        for name in ["", "/etc/passwd", "../up", "a/../../b"] {
            assert!(
                Job::new(["true"]).file("/x", name).check().is_err(),
                "{name:?}"
            );
        }
        assert!(
            Job::new(["true"])
                .file("/x", "guest/initrd")
                .check()
                .is_ok()
        );
    }
}
