//! `vmsrs metrics`: the state of running VMs for a monitoring system.

mod families;
mod listen;
mod recovery;

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::text::write_text;
use super::vms::Selection;
use super::{Exit, Failure};

/// Write metrics of running VMs, in the text format of OpenMetrics
///
/// Asks all VMs of this user, or those that are named. A VM that runs and does not answer has vmsrs_up 0. With --output the
/// file is replaced as a whole, so that the textfile collector of Prometheus's node exporter never reads half of one. With
/// --listen they are served over HTTP at /metrics until the command is ended, without encryption or a password.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vmsrs metrics
  vmsrs metrics --name web --output /var/lib/prometheus/node-exporter/vmsrs.prom
  vmsrs metrics --listen 127.0.0.1:9464

Exit codes: 0 success, 1 the file cannot be written or the address is not free, 2 invalid command line, 4 a VM that was named is not reachable.")]
pub(super) struct Arguments {
    #[command(flatten)]
    vms: Selection,
    /// Replace this file instead of writing to standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Serve them over HTTP at this address instead, such as 127.0.0.1:9464
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "output")]
    listen: Option<SocketAddr>,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    if let Some(address) = arguments.listen {
        return listen::serve(address, &arguments.vms);
    }
    let vms = arguments.vms.ask()?;
    let text = families::text(&vms);
    match &arguments.output {
        None => write_text(&text)?,
        Some(path) => replace(path, text.as_bytes())
            .with_context(|| format!("{} cannot be written", path.display()))
            .map_err(|error| Failure::new(Exit::Failure, error))?,
    }
    Ok(Exit::Ok)
}

/// Writes a file beside the one at `path`, and has it take that one's place. Others may read it.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let beside = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&beside)?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.write_all(content)?;
        fs::rename(&beside, path)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_or_left_as_it_was() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("vmsrs.prom");
        for content in ["first", "second"] {
            replace(&path, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        let folder = place.path().join("folder");
        fs::create_dir_all(folder.join("inside")).unwrap();
        replace(&folder, b"third").unwrap_err();
        replace(&place.path().join("none/vmsrs.prom"), b"third").unwrap_err();
        let left = fs::read_dir(place.path()).unwrap().count();
        assert_eq!(left, 2, "a temporary file is left");
    }
}
