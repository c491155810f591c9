//! The command line.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde::{Serialize, Serializer};
use vmsrs_bed::{Flavour, patience, shell_quote};
use vmsrs_ledger::arguments::arguments;
use vmsrs_ledger::guest::session::BootArgs;
use vmsrs_ledger::program::Server;
use vmsrs_ledger::users::{TooFewUsers, check_spread};

use crate::kind::{self, Kind};
use crate::options::Options;

/// Makes thousands of errors in a server's requests, and checks that other users are unaffected.
#[derive(Debug, Parser)]
#[command(name = "vmsrs-campaign", version, long_about = None)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do instead of running the campaign in a guest.
    #[command(subcommand)]
    pub command: Option<Job>,
    /// Do nine runs instead of one, seeds 1 to 3 with 1, 2 and 4 vCPUs each, even if some of them fail.
    #[arg(long, conflicts_with_all = ["seed", "vcpus"])]
    pub matrix: bool,
    /// The run.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What can be done instead.
#[derive(Debug, Subcommand)]
pub enum Job {
    /// Run against a ledger server that has just been started, without the injector: only its own bugs are reached.
    Against {
        /// Address and port of the server.
        #[arg(long, value_name = "ADDRESS:PORT")]
        connect: SocketAddr,
        /// The run.
        #[command(flatten)]
        run: RunArgs,
    },
    /// Print the errors that a seed plans (in the nested test-bed; elsewhere no memory is poisoned).
    Plan {
        /// The run.
        #[command(flatten)]
        run: RunArgs,
    },
    /// On a KVM host: boot a guest, run the campaign against its server, stop the guest.
    #[command(hide = true)]
    Guest(GuestArgs),
}

/// A run.
#[derive(Debug, Clone, Args, Serialize)]
pub struct RunArgs {
    /// Seed: the same seed plans the same errors.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Number of errors.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub errors: u64,
    /// CPUs of the guest.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub vcpus: u32,
    /// The server; the injector works only with the one in C.
    #[arg(long, value_enum, default_value_t = Server::C)]
    pub server: Server,
    /// Users, at least one for each connection.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub users: u16,
    /// Connections, each with its own thread on both sides. With more than 9, requests may share protection keys (10,
    /// one of them for guarded memory), and a stray write between two that share one goes unnoticed.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub connections: u16,
    /// Omit the kinds that end the server's process or the guest.
    #[arg(long)]
    pub no_restarts: bool,
    /// Make only errors of this kind, by its name in the report; several times for several kinds, in turn.
    #[arg(long, value_name = "KIND", value_parser = kind::named, conflicts_with = "no_restarts")]
    #[serde(serialize_with = "kind_names")]
    pub only: Vec<&'static Kind>,
    /// Seconds without an answer that count as a hang.
    #[arg(long, default_value_t = 300)]
    pub reply_timeout: u64,
    /// Seconds without a server that count as a hang.
    #[arg(long, default_value_t = 600)]
    pub outage_limit: u64,
    /// Limit for the whole run, in seconds; an incomplete run has failed [default: 900, plus 2 for each error].
    #[arg(long)]
    pub deadline: Option<u64>,
}

impl RunArgs {
    /// Checks the options before anything is built.
    ///
    /// # Errors
    ///
    /// As [`check_spread`].
    pub fn check(&self) -> Result<(), TooFewUsers> {
        check_spread(self.users.into(), self.connections.into())
    }

    /// The limit for the whole run.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        let seconds = self.deadline;
        Duration::from_secs(seconds.unwrap_or_else(|| 900 + self.errors.saturating_mul(2)))
    }

    /// The command that repeats the run in a guest with that kernel.
    #[must_use]
    pub fn command(&self, kernel: Flavour) -> String {
        let default = arguments(&Self::default());
        let mut changed = arguments(self);
        changed.retain(|argument| !default.contains(argument));
        let variable = |argument: &String| {
            let (name, value) = argument.strip_prefix("--")?.split_once('=')?;
            let known = MAKE_VARIABLES.iter().find(|(option, _)| *option == name)?;
            Some(format!("{}={value}", known.1))
        };
        let kernel = (kernel != Flavour::DEFAULT).then(|| kernel.to_string());
        // For other options make has no variables.
        let Some(variables) = changed.iter().map(variable).collect::<Option<Vec<_>>>() else {
            let kernel = kernel.map(|kernel| format!("{}={kernel} ", Flavour::VARIABLE));
            let arguments: Vec<_> = changed.iter().map(|word| shell_quote(word)).collect();
            return format!(
                "{}cargo run --release -p vmsrs-campaign -- {}",
                kernel.unwrap_or_default(),
                arguments.join(" ")
            );
        };
        let kernel = kernel.map(|kernel| format!("KERNEL={kernel}"));
        let words = ["make campaign".to_owned()].into_iter();
        let words: Vec<_> = words.chain(variables).chain(kernel).collect();
        words.join(" ")
    }

    /// The options for a server at `address` in a guest.
    #[must_use]
    pub fn options(&self, address: SocketAddr) -> Options {
        Options {
            address,
            seed: self.seed,
            errors: self.errors,
            users: self.users.into(),
            connections: self.connections.into(),
            injector: self.server == Server::C,
            restarts: !self.no_restarts,
            only: self.only.clone(),
            keys: false,
            host: None,
            reply_timeout: patience::scaled(Duration::from_secs(self.reply_timeout)),
            outage_limit: patience::scaled(Duration::from_secs(self.outage_limit)),
            deadline: patience::scaled(self.deadline()),
        }
    }
}

impl Default for RunArgs {
    fn default() -> Self {
        Cli::parse_from(["vmsrs-campaign"]).run
    }
}

/// Options, and the variables of `make campaign` for them.
const MAKE_VARIABLES: [(&str, &str); 4] = [
    ("seed", "SEED"),
    ("errors", "ERRORS"),
    ("vcpus", "VCPUS"),
    ("server", "SERVER"),
];

fn kind_names<S: Serializer>(kinds: &[&'static Kind], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(kinds.iter().map(|kind| kind.name))
}

/// A guest to boot.
#[derive(Debug, Clone, Args)]
pub struct GuestArgs {
    /// The guest.
    #[command(flatten)]
    pub boot: BootArgs,
    /// The run.
    #[command(flatten)]
    pub run: RunArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn impossible_options_are_refused_before_building() {
        for arguments in [
            &["--errors=0"][..],
            &["--connections=0"],
            &["--users=0"],
            &["plan", "--connections=18446744073709551615"],
            &["--seed=3", "plan"],
        ] {
            let name = std::iter::once(&"vmsrs-campaign");
            let parsed = Cli::try_parse_from(name.chain(arguments));
            assert!(parsed.is_err(), "{arguments:?}: {parsed:?}");
        }
        let run = |users| Cli::parse_from(["vmsrs-campaign", users, "--connections=8"]).run;
        assert!(run("--users=8").check().is_ok());
        let words = run("--users=7").check().unwrap_err().to_string();
        assert!(
            words.starts_with("7 users cannot be spread over 8"),
            "{words}"
        );
    }

    #[test]
    fn arguments_reach_another_process() {
        for further in [
            &["--no-restarts"][..],
            &["--only=second error in a defer"],
            &["--only=vfork child", "--only=division by zero"],
        ] {
            let first = ["vmsrs-campaign", "--seed=9", "--server=rust"];
            let first = Cli::parse_from(first.iter().chain(further)).run;
            let arguments = arguments(&first);
            let name = std::iter::once("vmsrs-campaign".to_owned());
            let again = Cli::parse_from(name.chain(arguments)).run;
            let text = |run: &RunArgs| format!("{:?}", run.options(([127, 0, 0, 1], 1).into()));
            assert_eq!(text(&first), text(&again));
            assert_eq!(first.vcpus, again.vcpus);
        }
    }

    #[test]
    fn command_of_a_failed_run_repeats_its_errors() {
        let run = |arguments: &[&str]| {
            let name = std::iter::once(&"vmsrs-campaign");
            Cli::parse_from(name.chain(arguments)).run
        };
        let stock = |arguments: &[&str]| run(arguments).command(Flavour::DEFAULT);
        let debug = |arguments: &[&str]| run(arguments).command(Flavour::Debug);
        let rust = &["--seed=9", "--errors=7", "--server=rust"];
        let command = "make campaign ERRORS=7 SEED=9 SERVER=rust";
        assert_eq!(stock(rust), command);
        assert_eq!(debug(rust), format!("{command} KERNEL=debug"));
        let short = stock(&["--no-restarts"]);
        assert!(short.ends_with(" --no-restarts"), "{short}");
        assert_eq!(
            debug(&["--no-restarts"]),
            format!("VMSRS_KERNEL=debug {short}")
        );
        let serial = stock(&["--connections=1"]);
        assert!(serial.ends_with(" --connections=1"), "{serial}");
        let only = stock(&["--only=division by zero"]);
        assert!(only.ends_with(" '--only=division by zero'"), "{only}");
    }

    #[test]
    fn a_long_run_has_a_long_time() {
        let run = Cli::parse_from(["vmsrs-campaign"]).run;
        assert!(run.deadline() >= Duration::from_secs(10_000));
    }
}
