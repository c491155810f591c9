//! The command line.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use vmsrs_bed::patience;
use vmsrs_ledger::guest::session::BootArgs;
use vmsrs_ledger::load::Options;
use vmsrs_ledger::plan::FATAL_ONE_IN;
use vmsrs_ledger::program::Server;

/// Demonstrates VMSRS: the same load against a server that dies, and one that survives.
#[derive(Debug, Parser)]
#[command(name = "vmsrs-demo", version, long_about = None)]
pub struct Cli {
    /// What to do instead of the whole demonstration.
    #[command(subcommand)]
    pub command: Option<Job>,
    /// The load of the demonstration.
    #[command(flatten)]
    pub load: LoadArgs,
    /// The server of the demonstration.
    #[arg(long, value_enum, default_value_t = Server::C)]
    pub server: Server,
}

/// What can be done instead of the whole demonstration.
#[derive(Debug, Subcommand)]
pub enum Job {
    /// Run the load against a ledger server that is already running.
    #[command(
        after_help = "Example:\n  cc -O2 -pthread -DPLAIN tests/ledger/servers/ledger.c -o /tmp/ledger\n  \
                      /tmp/ledger 7878 &\n  vmsrs-demo load --connect 127.0.0.1:7878 --no-faults"
    )]
    Load {
        /// Address and port of the server.
        #[arg(long, value_name = "ADDRESS:PORT")]
        connect: SocketAddr,
        /// The load.
        #[command(flatten)]
        load: LoadArgs,
    },
    /// Measure how fatal requests affect ordinary ones: the servers with and without VMSRS, undisturbed and with fatal
    /// requests, by a clock that counts instructions.
    Integral(IntegralArgs),
    /// On a KVM host: boot a guest, run the load against its server, stop the guest.
    #[command(hide = true)]
    Guest(GuestArgs),
}

/// The load.
#[derive(Debug, Clone, Args, Serialize)]
pub struct LoadArgs {
    /// Number of users.
    #[arg(long, default_value_t = 52)]
    pub users: usize,
    /// Connections, each with its own thread on both sides.
    #[arg(long, default_value_t = 16)]
    pub connections: usize,
    /// Requests; rounded up so that each connection has a multiple of N of --fatal-one-in.
    #[arg(long, default_value_t = 3200)]
    pub requests: usize,
    /// One request in N is fatal.
    #[arg(long, value_name = "N", default_value_t = FATAL_ONE_IN)]
    pub fatal_one_in: usize,
    /// Seed: the same seed gives the same requests.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Send only ordinary requests.
    #[arg(long)]
    pub no_faults: bool,
    /// Limit for one answer, in seconds.
    #[arg(long, default_value_t = 120)]
    pub reply_timeout: u64,
    /// Limit for all requests together, in seconds.
    #[arg(long, default_value_t = 1800)]
    pub deadline: u64,
}

impl LoadArgs {
    /// The options for a server at `address`.
    pub fn options(&self, address: SocketAddr) -> Options {
        Options {
            address,
            users: self.users,
            connections: self.connections,
            requests: self.requests,
            faults: !self.no_faults,
            fatal_one_in: self.fatal_one_in,
            seed: self.seed,
            reply_timeout: patience::scaled(Duration::from_secs(self.reply_timeout)),
            deadline: patience::scaled(Duration::from_secs(self.deadline)),
        }
    }
}

/// The measurement of the whole system.
#[derive(Debug, Clone, Args)]
pub struct IntegralArgs {
    /// How often each of the four loads is run, each time in a new guest and with another seed.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Limit for the whole measurement, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 7200)]
    pub limit: u64,
    /// Number of users.
    #[arg(long, default_value_t = 52)]
    pub users: usize,
    /// Connections, each with its own thread on both sides.
    #[arg(long, default_value_t = 16)]
    pub connections: usize,
    /// Requests of each load.
    #[arg(long, default_value_t = 9600)]
    pub requests: usize,
    /// One request in N is fatal in the disturbed load.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub fatal_one_in: usize,
    /// Seed of the first round; each next round adds one.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The server.
    #[arg(long, value_enum, default_value_t = Server::C)]
    pub server: Server,
}

impl IntegralArgs {
    /// The load of a round.
    pub fn load(&self, round: u32, faults: bool) -> LoadArgs {
        LoadArgs {
            users: self.users,
            connections: self.connections,
            requests: self.requests,
            fatal_one_in: self.fatal_one_in,
            seed: self.seed + u64::from(round),
            no_faults: !faults,
            reply_timeout: 120,
            deadline: self.limit,
        }
    }
}

/// A guest to boot, and its load.
#[derive(Debug, Clone, Args)]
pub struct GuestArgs {
    /// Its name in the results.
    #[arg(long)]
    pub name: String,
    /// The guest.
    #[command(flatten)]
    pub boot: BootArgs,
    /// The load.
    #[command(flatten)]
    pub load: LoadArgs,
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmsrs_ledger::arguments::arguments;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn load_arguments_reach_another_process() {
        let first = Cli::parse_from(["vmsrs-demo", "--users", "60", "--no-faults", "--seed", "9"]);
        let arguments = arguments(&first.load);
        let again = Cli::parse_from(std::iter::once("vmsrs-demo".to_owned()).chain(arguments));
        assert_eq!(format!("{:?}", first.load), format!("{:?}", again.load));
    }
}
