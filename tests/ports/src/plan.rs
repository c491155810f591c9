//! What a guest does, and what it finds.

use serde::{Deserialize, Serialize};

/// One of the two builds.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// As Debian has it.
    Plain,
    /// Ported.
    Protected,
}

impl Mode {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Plain, Self::Protected];

    /// The name, which is also that of the folder in the guest.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Protected => "protected",
        }
    }
}

/// A server that is ported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Server {
    /// A cache: threads with event loops, and users that share tables.
    Memcached,
    /// A broker: one thread with an event loop, and users that share trees.
    Mosquitto,
    /// A store: one thread with an event loop, and a keyspace of all users.
    Redis,
}

impl Server {
    /// The name of Debian's source package, and of the port's folder.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memcached => "memcached",
            Self::Mosquitto => "mosquitto",
            Self::Redis => "redis",
        }
    }

    /// Virtual CPUs of a guest in which errors are injected: more than a server has threads only wait for each other, and an
    /// emulated one that waits takes its time from the others.
    pub(crate) fn vcpus(self) -> u32 {
        match self {
            Self::Memcached => 2,
            Self::Mosquitto | Self::Redis => 1,
        }
    }
}

/// What a guest does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) server: Server,
    pub(crate) part: Part,
}

/// A part of the work, each in a guest of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Part {
    /// The server's own test suite.
    Suite {
        /// Which build.
        mode: Mode,
        /// Shards of the protected one.
        shards: u32,
        /// Only files whose name contains this.
        only: String,
        /// Files that are left out: an earlier run has their results.
        done: Vec<String>,
    },
    /// What a command costs the server.
    Throughput {
        /// Commands of each measurement with the smallest values.
        commands: u32,
        /// Virtual CPUs of the guest, and threads of the server.
        vcpus: u32,
    },
    /// Load by tools that are not ours.
    Load,
    /// Errors by the injector, with a model.
    Errors {
        /// The same seed makes the same errors.
        seed: u64,
        /// How many.
        errors: u64,
        /// Only kinds whose name contains this.
        kind: String,
        /// Virtual CPUs of the guest.
        vcpus: u32,
    },
    /// Classes of published vulnerabilities, made again by edits.
    Bugs {
        /// How many of each class.
        each: u64,
    },
}

impl Part {
    /// Whether the clock counts instructions: for measurements, for tests that wait for times, and for errors in servers with
    /// one thread. Then waiting takes no time, errors of a seed are the same on every machine, and one that is busy with
    /// other things does not spend its time on the ticks of emulated clocks.
    pub(crate) fn is_timed(&self) -> bool {
        match self {
            Self::Throughput { .. } | Self::Suite { .. } => true,
            Self::Errors { vcpus, .. } => *vcpus == 1,
            Self::Load | Self::Bugs { .. } => false,
        }
    }

    /// Whether its findings are complete in themselves. It takes long and may be interrupted: the report has each file of a suite
    /// when it has ended, and errors from time to time.
    pub(crate) fn is_piecemeal(&self) -> bool {
        matches!(self, Self::Suite { .. } | Self::Errors { .. })
    }

    /// Virtual CPUs of the guest.
    pub(crate) fn vcpus(&self) -> u32 {
        match self {
            Self::Throughput { vcpus, .. } | Self::Errors { vcpus, .. } => *vcpus,
            Self::Suite { .. } => 1,
            Self::Load | Self::Bugs { .. } => 2,
        }
    }
}

/// What a guest finds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Finding {
    /// A file of the suite has run.
    Suite(SuiteFile),
    /// A measurement.
    Throughput(Throughput),
    /// A tool has run.
    Load(Load),
    /// The outcome of injected errors, or of a class of bugs.
    Errors(Errors),
}

/// A file of the server's own suite.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SuiteFile {
    pub(crate) mode: Mode,
    pub(crate) shards: u32,
    pub(crate) file: String,
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    /// Why the file does not apply, or nothing.
    pub(crate) skipped: Option<String>,
    /// Descriptions of failed tests, and what else went wrong.
    pub(crate) failures: Vec<String>,
    /// How long it took by the guest's clock; 0 for suites that run on the machine.
    #[serde(default)]
    pub(crate) seconds: f64,
}

/// What a command costs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Throughput {
    pub(crate) mode: Mode,
    /// What commands there are.
    pub(crate) mix: String,
    pub(crate) value_bytes: usize,
    pub(crate) vcpus: u32,
    /// CPU time of the server for each command, in nanoseconds.
    pub(crate) nanoseconds: f64,
    /// Commands.
    pub(crate) commands: u32,
}

/// A tool's run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) mode: Mode,
    pub(crate) command: String,
    pub(crate) code: Option<i32>,
    /// The last lines of its output.
    pub(crate) output: Vec<String>,
}

/// The outcome of errors.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Errors {
    /// What made them.
    pub(crate) class: String,
    /// Errors that were made.
    pub(crate) injected: u64,
    /// Requests answered with an error; everything was as before.
    pub(crate) request_lost: u64,
    /// Answered correctly.
    pub(crate) no_effect: u64,
    /// The request's own key has a wrong value, or a wrong answer.
    pub(crate) own_wrong: u64,
    /// Of those that were made: the request failed, or its connection ended, but the injector's report did not come.
    #[serde(default)]
    pub(crate) unreported: u64,
    /// Errors that were planned, at a place that the request does not pass.
    pub(crate) not_reached: u64,
    /// Wrong answers about other keys, and errors in other requests.
    pub(crate) others_harmed: u64,
    /// The server ended.
    pub(crate) restarts: u64,
    /// Commands without an error that were answered right.
    pub(crate) ordinary: u64,
    /// By kind: how often.
    pub(crate) kinds: std::collections::BTreeMap<String, u64>,
    /// By kind: how long the answers took, all together.
    #[serde(default)]
    pub(crate) milliseconds: std::collections::BTreeMap<String, u64>,
    /// Errors that are not made, and why.
    #[serde(default)]
    pub(crate) left_out: std::collections::BTreeMap<String, String>,
    /// What went wrong, in words.
    pub(crate) complaints: Vec<String>,
    /// All data was compared after the last error. Otherwise this is what was found before the run was interrupted.
    #[serde(default = "yes")]
    pub(crate) ended: bool,
}

/// Of reports that are older than [`Errors::ended`].
fn yes() -> bool {
    true
}
