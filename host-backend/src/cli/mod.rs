//! The `vmsrs` command: its arguments, and what its subcommands do.

mod doctor;
mod domains;
mod exit;
mod incidents;
mod memory;
mod metrics;
mod run;
mod scrub;
mod status;
mod stop;
mod text;
mod top;
mod vms;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use log::LevelFilter;

pub use self::exit::{Exit, Failure};
pub use self::run::RunError;
use self::run::config::ConfigFile;
use crate::control::{Client, ClientError, default_path};
use crate::output::{self, say};

/// Default name of a VM.
const DEFAULT_NAME: &str = "vm";

/// Runs virtual machines in which a failing request costs its own user an error, and others nothing.
#[derive(Debug, Parser)]
#[command(name = "vmsrs", version, after_help = exit::HELP, max_term_width = 100)]
struct Arguments {
    /// Log more to standard error; twice for debug messages, three times for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Arguments),
    Doctor(doctor::Arguments),
    Status(status::Arguments),
    Incidents(incidents::Arguments),
    Domains(domains::Arguments),
    Scrub(scrub::Arguments),
    Stop(stop::Arguments),
    Metrics(metrics::Arguments),
    Top(top::Arguments),
}

impl Command {
    fn json(&self) -> bool {
        match self {
            Self::Run(arguments) => arguments.json,
            Self::Doctor(arguments) => arguments.json,
            Self::Status(arguments) => arguments.json,
            Self::Incidents(arguments) => arguments.json,
            Self::Domains(arguments) => arguments.json,
            Self::Scrub(arguments) => arguments.json,
            Self::Stop(arguments) => arguments.json,
            Self::Metrics(_) | Self::Top(_) => false,
        }
    }

    fn execute(self) -> Result<Exit, Failure> {
        match self {
            Self::Run(arguments) => run::run(arguments),
            Self::Doctor(arguments) => doctor::run(&arguments),
            Self::Status(arguments) => status::run(&arguments),
            Self::Incidents(arguments) => incidents::run(&arguments),
            Self::Domains(arguments) => domains::run(&arguments),
            Self::Scrub(arguments) => scrub::run(&arguments),
            Self::Stop(arguments) => stop::run(arguments),
            Self::Metrics(arguments) => metrics::run(&arguments),
            Self::Top(arguments) => top::run(&arguments),
        }
    }
}

/// The VM to talk to.
#[derive(Debug, Args)]
struct Target {
    /// Name of the VM
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// Path of its control socket [default: /run/vmsrs/NAME.sock for root, otherwise
    /// $XDG_RUNTIME_DIR/vmsrs/NAME.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Target {
    fn path(&self) -> Result<PathBuf, Failure> {
        match &self.socket {
            Some(path) => Ok(path.clone()),
            None => default_path(&self.name).map_err(|error| Failure::new(Exit::Usage, error)),
        }
    }

    fn connect(&self) -> Result<Client, Failure> {
        Ok(Client::connect(&self.path()?)?)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        use crate::control::Reason;
        let exit = match &error {
            ClientError::Connect { .. } | ClientError::Exchange(_) => Exit::Unreachable,
            ClientError::Malformed(_) => Exit::Failure,
            ClientError::Refused(refusal) => match refusal.reason {
                Reason::NoSuchIncident | Reason::NoSuchDomain => Exit::NotFound,
                Reason::Busy => Exit::Busy,
                Reason::Malformed => Exit::Failure,
            },
        };
        Self::new(exit, error)
    }
}

/// The program: parses the command line, runs the command and reports the result.
pub fn main() -> ExitCode {
    let exit = match parse(std::env::args_os().collect()) {
        Ok(arguments) => execute(arguments),
        Err(Unparsed::CommandLine(error)) => not_run(&error),
        Err(Unparsed::ConfigFile { failure, json }) => report(&failure, json),
    };
    output::finish_stderr();
    exit
}

/// What the command line can be, for manual pages and completions of shells.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Why there are no arguments to run.
enum Unparsed {
    /// Help was asked for, or the command line is invalid.
    CommandLine(clap::Error),
    /// The configuration file that it names is invalid.
    ConfigFile {
        failure: Failure,
        /// Errors are wanted in JSON too.
        json: bool,
    },
}

impl From<clap::Error> for Unparsed {
    fn from(error: clap::Error) -> Self {
        Self::CommandLine(error)
    }
}

/// The arguments on the command line, and in the configuration file that it may name.
fn parse(line: Vec<OsString>) -> Result<Arguments, Unparsed> {
    let mut command = Arguments::command();
    // The file may have what the command line lacks.
    let lenient = command
        .clone()
        .mut_subcommand("run", run::config::without_requirements);
    let matches = lenient.try_get_matches_from(&line)?;
    if let Some(run) = matches.subcommand_matches("run")
        && let Some(path) = run.get_one::<PathBuf>("config")
    {
        let file = ConfigFile::read(path).map_err(|error| Unparsed::ConfigFile {
            failure: error.into(),
            json: run.get_one("json") == Some(&true),
        })?;
        command = command.mut_subcommand("run", |run| file.set_defaults(run));
    }
    let matches = command.try_get_matches_from(line)?;
    Ok(Arguments::from_arg_matches(&matches)?)
}

/// Help was asked for, or the command line is invalid.
fn not_run(error: &clap::Error) -> ExitCode {
    match error.print() {
        Err(failed) if !error.use_stderr() && failed.kind() != io::ErrorKind::BrokenPipe => {
            say(format_args!("standard output cannot be written: {failed}"));
            Exit::Failure.into()
        }
        // Of the documented codes.
        _ => ExitCode::from(error.exit_code() as u8),
    }
}

fn execute(arguments: Arguments) -> ExitCode {
    start_log(arguments.verbose);
    let json = arguments.command.json();
    match arguments.command.execute() {
        Ok(exit) => exit.into(),
        Err(failure) => report(&failure, json),
    }
}

fn report(failure: &Failure, json: bool) -> ExitCode {
    say(format_args!("{failure}"));
    if json {
        let error = failure.to_string();
        let exit = failure.exit as u8;
        // What cannot be written to standard output has been said on standard error.
        let _ = text::write_json(&serde_json::json!({ "error": error, "exit": exit }));
    }
    failure.exit.into()
}

fn start_log(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let style = match io::stderr().is_terminal() {
        true => env_logger::WriteStyle::Always,
        false => env_logger::WriteStyle::Never,
    };
    env_logger::Builder::new()
        .target(env_logger::Target::Pipe(Box::new(output::Log)))
        .write_style(style)
        .filter_level(level)
        // It reports every mistake of the guest as an error, without end. What the guest does wrong
        // is counted, and logged once per kind, by the devices.
        .filter_module("virtio_queue", LevelFilter::Off)
        .parse_default_env()
        .format_target(false)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        for command in Arguments::command().get_subcommands() {
            let help = command.get_after_help().expect("a help text").to_string();
            assert!(help.contains("Examples:"), "{}", command.get_name());
        }
    }
}
