//! The `vmsrs` command.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

fn main() -> ExitCode {
    vmsrs_host::cli::main()
}
