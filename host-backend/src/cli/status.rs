//! `vmsrs status`: the state of a running VM.

use super::text::{self, duration, facts, write_json, write_text};
use super::{Exit, Failure, Target};
use crate::control::{Count, DaemonFacts, EngineStatus};
use crate::control::{Request, Response, VmStatus};
use crate::size::Size;

/// Show the state of a running VM: its pool and vault, its domains, what failed in it
///
/// Needs access to the VM's control socket: run it as the user who started the VM, or as root.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vmsrs status
  vmsrs status --name web --json | jq .recovery.free_frames

Exit codes: 0 success, 2 invalid command line, 4 no VM reachable.")]
pub(super) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Write one line of JSON (docs/reference-cli.md describes it)
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let response = arguments.target.connect()?.ask(Request::Status {})?;
    let Response::Status(status) = response else {
        return Err(unexpected());
    };
    if arguments.json {
        write_json(&status)?;
    } else {
        write_text(&describe(&status))?;
    }
    Ok(Exit::Ok)
}

/// The VM gave an answer to another question.
pub(super) fn unexpected() -> Failure {
    let error = anyhow::anyhow!("the VM sent an unexpected answer: it may be of another version");
    Failure::new(Exit::Failure, error)
}

fn describe(status: &VmStatus) -> String {
    let recovery = &status.recovery;
    let page = u64::from(vmsrs_protocol::PAGE_SIZE);
    let frames = |frames: u32| {
        let size = Size(u64::from(frames) * page).to_string();
        format!("{frames:>8} frames {size:>8}")
    };
    let mut rows = vec![
        (
            "VM",
            format!("{} (process {})", text::printable(&status.name), status.pid),
        ),
        ("uptime", duration(status.uptime_ms)),
        ("restarts", restarts(status)),
        ("vCPUs", status.vcpus.to_string()),
        ("memory", Size(status.memory_bytes).to_string()),
        ("pool", frames(recovery.pool_frames)),
        ("vault", frames(recovery.vault_frames)),
        ("  free", frames(recovery.free_frames)),
        ("  staged", frames(recovery.staged_frames)),
        ("  sealed", frames(recovery.sealed_frames)),
        ("  mirror", frames(recovery.mirror_frames)),
        ("  retired", frames(recovery.retired_frames)),
        ("apps", recovery.apps.to_string()),
        ("domains", recovery.domains.to_string()),
        (
            "pages",
            format!("{} of {}", recovery.pages, recovery.pages_max),
        ),
        (
            "batches sealed",
            format!(
                "{} ({} pages in {} messages)",
                recovery.batches, recovery.sealed_pages, recovery.seal_messages
            ),
        ),
        ("drafts dropped", recovery.dropped_drafts.to_string()),
        (
            "scrubbed",
            format!(
                "{} pages in {} passes, {} repaired",
                recovery.scrub.checked, recovery.scrub_passes, recovery.scrub.repaired
            ),
        ),
        ("pages lost", recovery.damaged_pages.to_string()),
        ("device resets", recovery.resets.to_string()),
        (
            "console lost",
            format!("{} bytes", status.console_lost_bytes),
        ),
    ];
    if let Some(network) = status.network {
        rows.push((
            "network",
            format!(
                "{} frames in ({} dropped), {} out ({} dropped)",
                network.received,
                network.received_dropped,
                network.transmitted,
                network.transmitted_dropped
            ),
        ));
    }
    for daemon in &status.daemons {
        rows.push(("daemon", served(daemon)));
    }
    push_incidents(&mut rows, recovery);
    push_counts(&mut rows, "refused", &recovery.refusals);
    push_counts(&mut rows, "device errors", &status.device_errors);
    facts(&rows)
}

/// The number of restarts, with when and why the latest was.
fn restarts(status: &VmStatus) -> String {
    match &status.last_restart {
        None => status.restarts.to_string(),
        Some(last) => format!(
            "{} (last at {}: {})",
            status.restarts,
            text::time(last.at_ms),
            text::printable(&last.message)
        ),
    }
}

/// What a daemon serves, and whether it does.
fn served(daemon: &DaemonFacts) -> String {
    let option = text::printable(&daemon.option);
    match (&daemon.lost, daemon.pid) {
        (Some(why), _) => format!("{option}: lost: {}", text::printable(why)),
        (None, Some(pid)) => format!("{option}: process {pid}"),
        (None, None) => format!("{option}: connected"),
    }
}

fn push_incidents(rows: &mut Vec<(&str, String)>, recovery: &EngineStatus) {
    rows.push(("incidents", recovery.all_incidents().to_string()));
    for kind in &recovery.incidents {
        let (what, outcome) = (text::printable(&kind.what), kind.outcome.name());
        rows.push(("", format!("{:>8}  {what}, {outcome}", kind.count)));
    }
}

fn push_counts(rows: &mut Vec<(&str, String)>, name: &'static str, counts: &[Count]) {
    let total: u64 = counts.iter().map(|count| count.count).sum();
    rows.push((name, total.to_string()));
    for Count { what, count } in counts {
        rows.push(("", format!("{count:>8}  {}", text::printable(what))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{IncidentCount, IncidentOutcome, Restart};

    #[test]
    fn the_text_names_every_part() {
        let status = VmStatus {
            name: "web".into(),
            version: "1".into(),
            pid: 7,
            uptime_ms: 61_000,
            vcpus: 2,
            memory_bytes: 512 << 20,
            recovery: EngineStatus {
                pool_frames: 8192,
                vault_frames: 65_536,
                incidents: vec![IncidentCount {
                    what: "double-free".into(),
                    outcome: IncidentOutcome::Recovered,
                    count: 3,
                }],
                ..EngineStatus::default()
            },
            restarts: 2,
            last_restart: Some(Restart {
                at_ms: 0,
                reason: "reset".into(),
                message: "the guest reset itself".into(),
            }),
            console_lost_bytes: 4711,
            network: None,
            daemons: vec![
                DaemonFacts {
                    option: "--disk a.img".into(),
                    pid: Some(8),
                    lost: None,
                },
                DaemonFacts {
                    option: "--vhost-user blk,socket=/s".into(),
                    pid: None,
                    lost: Some("it closed the connection".into()),
                },
            ],
            device_errors: Vec::new(),
        };
        let text = describe(&status);
        for part in [
            "web (process 7)",
            "1 min 1 s",
            "2 (last at 1970-01-01 00:00:00.000: the guest reset itself)",
            "512M",
            "65536 frames     256M",
            "incidents       3",
            "3  double-free",
            "4711 bytes",
            "--disk a.img: process 8",
            "--vhost-user blk,socket=/s: lost: it closed the connection",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }
}
