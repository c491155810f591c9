//! Real servers, ported to VMSRS: built plain and protected from Debian's sources, then tested, measured and attacked in a
//! guest. `docs/ports/` describes the ports.
//!
//! `vmsrs-ports guest` runs in the guest and prints its findings on the guest's console; `vmsrs-ports host` boots the guest on
//! the KVM host and passes them on.

mod build;
mod guest;
mod host;
mod image;
mod plan;
mod report;
mod run;
mod suite;

use anyhow::Result;
use clap::{Parser, Subcommand};
use vmsrs_bed::guest::Plans;

use crate::plan::{Plan, Server};

/// Build, test, measure and attack real servers.
#[derive(Parser)]
#[command(name = "vmsrs-ports", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// memcached: writes target/ports/memcached/report.json.
    Memcached(run::Arguments),
    /// mosquitto: writes target/ports/mosquitto/report.json.
    Mosquitto(run::Arguments),
    /// redis: writes target/ports/redis/report.json.
    Redis(run::Arguments),
    /// Work here, in the guest.
    #[command(hide = true)]
    Guest,
    /// Boot guests here, on the KVM host.
    #[command(hide = true)]
    Host(Plans),
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Memcached(arguments) => run::run(Server::Memcached, &arguments),
        Command::Mosquitto(arguments) => run::run(Server::Mosquitto, &arguments),
        Command::Redis(arguments) => run::run(Server::Redis, &arguments),
        Command::Guest => guest::work(),
        Command::Host(plans) => host::run(&plans.kernel, &plans.initramfs, &plans.read::<Plan>()?),
    }
}
