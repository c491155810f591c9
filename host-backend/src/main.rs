//! The `vmsrs` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmsrs_host::cli::main()
}
