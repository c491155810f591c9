//! Writes the manual pages and shell completions of the `vmsrs` command into a folder, from its own definition.

use std::env;
use std::fs;
use std::io;
use std::path::PathBuf;

use clap_complete::Shell;

fn main() -> io::Result<()> {
    let folder = env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or_else(|| io::Error::other("usage: vmsrs-generate FOLDER"))?;
    fs::create_dir_all(&folder)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let mut command = vmsrs_host::cli::command();
        clap_complete::generate_to(shell, &mut command, "vmsrs", &folder)?;
    }
    clap_mangen::generate_to(vmsrs_host::cli::command(), &folder)
}
