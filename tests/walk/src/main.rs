//! Runs the commands of `docs/operating.md` from the packages to the first incident, in a guest's system and on a KVM host with
//! systemd. See `tests/walk/image.sh` for what that host is made of.

mod blocks;
mod host;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use vmsrs_bed::project;

use blocks::Place;

/// Runs the commands of docs/operating.md.
#[derive(Debug, Parser)]
#[command(name = "vmsrs-walk", version, long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the commands of one place into a folder, for tests/walk/run.sh.
    Extract {
        /// Where they belong.
        place: Place,
        /// An empty folder.
        folder: PathBuf,
    },
    /// Boot the host that tests/walk/image.sh has made, which runs its commands.
    Run {
        /// The folder with its disk, its kernel and its initramfs.
        folder: PathBuf,
    },
}

/// The document with the commands.
const DOCUMENT: &str = "docs/operating.md";

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Extract { place, folder } => extract(place, &folder).map(|()| true),
        Command::Run { folder } => host::run(&folder),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vmsrs-walk: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn extract(place: Place, folder: &Path) -> Result<()> {
    let path = project::root().join(DOCUMENT);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let blocks = blocks::parse(&text).with_context(|| DOCUMENT.to_owned())?;
    blocks::write(&blocks, place, DOCUMENT, folder)
}
