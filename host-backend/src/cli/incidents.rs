//! `vmsrs incidents`: what failed in a VM.

use std::fmt::Write as _;

use serde::Serialize;
use vmsrs_protocol::incident::REGISTERS;

use super::status::unexpected;
use super::text::{
    self, address, facts, nanoseconds, printable, printable_or_dash, table, write_json, write_text,
};
use super::{Exit, Failure, Target};
use crate::control::{Request, Response};
use crate::engine::{IncidentDetail, IncidentSummary, RequestFacts};

/// List what failed in a running VM, or show one incident with all its facts
///
/// Without an ID the newest incident is last. Odd numbers are failed requests reported by the
/// guest, even ones are the host's own: writes that the second-level page table stopped, and ends of
/// the guest's kernel that took requests with them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vmsrs incidents
  vmsrs incidents 7
  vmsrs incidents --json | jq '.[] | select(.kind == \"double-free\") | .number'

Exit codes: 0 success, 2 wrong usage, 4 no VM can be reached, 8 no such incident.")]
pub(super) struct Arguments {
    /// Number of one incident
    id: Option<u64>,
    #[command(flatten)]
    target: Target,
    /// Write one line of JSON (docs/reference-cli.md describes it)
    #[arg(long)]
    pub(super) json: bool,
}

/// Names of the registers, in the order of the protocol.
const REGISTER_NAMES: [&str; REGISTERS] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rip", "rflags",
];

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut client = arguments.target.connect()?;
    match arguments.id {
        None => match client.ask(Request::Incidents {})? {
            Response::Incidents(list) => show(arguments, &list, |list| describe_list(list))?,
            _ => return Err(unexpected()),
        },
        Some(id) => match client.ask(Request::Incident { id })? {
            Response::Incident(detail) => show(arguments, &detail, |detail| describe(detail))?,
            _ => return Err(unexpected()),
        },
    }
    Ok(Exit::Ok)
}

fn show<T: Serialize>(
    arguments: &Arguments,
    value: &T,
    describe: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    if arguments.json {
        write_json(value)?;
    } else {
        write_text(&describe(value))?;
    }
    Ok(())
}

/// An enumeration in the spelling that it has in JSON.
fn spelled(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => "?".to_owned(),
    }
}

fn describe_list(list: &[IncidentSummary]) -> String {
    if list.is_empty() {
        return "no incidents\n".to_owned();
    }
    let rows: Vec<_> = list
        .iter()
        .map(|incident| {
            [
                incident.number.to_string(),
                text::time(incident.at_ms),
                printable(&incident.kind),
                spelled(incident.outcome),
                printable_or_dash(incident.app.as_deref()),
                printable_or_dash(incident.domain.as_deref()),
                address(incident.address),
            ]
        })
        .collect();
    let head = [
        "ID",
        "TIME (UTC)",
        "KIND",
        "OUTCOME",
        "APP",
        "DOMAIN",
        "ADDRESS",
    ];
    table(head, &rows)
}

fn describe(detail: &IncidentDetail) -> String {
    let summary = &detail.summary;
    let owner = detail
        .request
        .as_ref()
        .and_then(|request| request.address_at.as_ref())
        .and_then(|at| at.domain.as_deref());
    let mut at = address(summary.address);
    if let Some(owner) = owner {
        let _ = write!(at, " (in domain {})", printable(owner));
    }
    let mut rows = vec![
        ("incident", summary.number.to_string()),
        ("time (UTC)", text::time(summary.at_ms)),
        ("kind", printable(&summary.kind)),
        ("outcome", spelled(summary.outcome)),
        ("app", printable_or_dash(summary.app.as_deref())),
        ("domain", printable_or_dash(summary.domain.as_deref())),
        ("address", at),
        ("instruction", address(detail.instruction)),
    ];
    if let Some(write) = &detail.sealed_write {
        let mode = if write.user {
            "user mode"
        } else {
            "the kernel"
        };
        rows.extend([
            ("written by", format!("{mode}, vCPU {}", write.vcpu)),
            ("frame", write.frame.to_string()),
            ("guest physical", format!("{:#x}", write.physical)),
            ("attempts", write.count.to_string()),
        ]);
    }
    if let Some(down) = &detail.guest_down {
        rows.extend([
            ("how", printable(&down.reason)),
            ("frames granted", down.granted_frames.to_string()),
            ("drafts dropped", down.written_frames.to_string()),
            ("pages of a commit cut off", down.staged_pages.to_string()),
        ]);
    }
    let mut text = String::new();
    if let Some(request) = &detail.request {
        let thread = printable(&request.thread);
        rows.extend([
            ("request tag", request.tag.to_string()),
            (
                "thread",
                format!("{thread} (process {}, thread {})", request.pid, request.tid),
            ),
            (
                "signal",
                format!("{} (code {})", request.signal, request.code),
            ),
            ("recovered in", nanoseconds(request.recovery_ns)),
            ("restored to", spelled(request.restored)),
            ("drafts dropped", request.drafts_total.to_string()),
        ]);
        text = describe_request(request);
    }
    facts(&rows) + &text
}

/// The lists of a failed request: dropped drafts, registers, backtrace.
fn describe_request(request: &RequestFacts) -> String {
    let mut text = String::new();
    if !request.drafts.is_empty() {
        let rows: Vec<_> = request
            .drafts
            .iter()
            .map(|draft| {
                [
                    printable(&draft.domain),
                    draft.page.to_string(),
                    draft.changed_bytes.to_string(),
                    address(draft.first_changed.map(u64::from)),
                    draft
                        .frame
                        .map_or_else(|| "-".to_owned(), |frame| frame.to_string()),
                ]
            })
            .collect();
        let head = ["DOMAIN", "PAGE", "BYTES CHANGED", "FIRST AT", "FRAME"];
        let _ = write!(text, "\ndropped drafts\n{}", table(head, &rows));
    }
    if !request.registers.is_empty() {
        text.push_str("\nregisters\n");
        let named: Vec<_> = REGISTER_NAMES.iter().zip(&request.registers).collect();
        for line in named.chunks(3) {
            for (name, value) in line {
                let _ = write!(text, "{name:>6} {value:016x}  ");
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
    }
    if !request.backtrace.is_empty() {
        text.push_str("\nbacktrace\n");
        for (level, pc) in request.backtrace.iter().enumerate() {
            let _ = writeln!(text, "  #{level:<2} {pc:#018x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{
        AddressFacts, DraftFacts, GuestDownFacts, Outcome, Place, Restored, SealedWriteFacts,
    };

    fn summary() -> IncidentSummary {
        IncidentSummary {
            number: 7,
            at_ms: 0,
            kind: "foreign-write".into(),
            outcome: Outcome::Recovered,
            app: Some("ledger".into()),
            domain: None,
            address: Some(0x1000_0000_0010),
        }
    }

    #[test]
    fn the_list_is_a_table() {
        assert_eq!(describe_list(&[]), "no incidents\n");
        let text = describe_list(&[summary()]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].find("KIND"), lines[1].find("foreign-write"));
        assert!(lines[1].ends_with("recovered  ledger  -       0x100000000010"));
    }

    #[test]
    fn an_incident_is_shown_with_all_its_facts() {
        let detail = IncidentDetail {
            summary: summary(),
            instruction: Some(0x40_1000),
            request: Some(RequestFacts {
                tag: 99,
                signal: 11,
                code: 2,
                pid: 100,
                tid: 101,
                thread: "worker".into(),
                address_at: Some(AddressFacts {
                    place: Place::Domain,
                    app: Some("ledger".into()),
                    domain: Some("user-8".into()),
                    behind: None,
                }),
                program: None,
                details_dropped: false,
                recovery_ns: 4_200,
                restored: Restored::Sealed,
                drafts_total: 1,
                drafts: vec![DraftFacts {
                    domain: "user-7".into(),
                    page: 3,
                    address: 0x1000_0000_3000,
                    changes: Vec::new(),
                    changed_bytes: 17,
                    first_changed: Some(0x20),
                    frame: Some(12),
                }],
                registers: (0..REGISTERS as u64).collect(),
                backtrace: vec![0x40_2000],
            }),
            sealed_write: Some(SealedWriteFacts {
                frame: 5,
                vcpu: 1,
                physical: 0x1_0000_5000,
                user: false,
                count: 2,
            }),
            guest_down: Some(GuestDownFacts {
                reason: "the guest reset itself".into(),
                granted_frames: 1024,
                written_frames: 3,
                staged_pages: 0,
            }),
        };
        let text = describe(&detail);
        for part in [
            "0x100000000010 (in domain user-8)",
            "0x401000",
            "worker (process 100, thread 101)",
            "11 (code 2)",
            "4.2 µs",
            "sealed",
            "user-7  3     17             0x20      12",
            "rax 0000000000000000",
            "rflags 0000000000000011",
            "#0  0x0000000000402000",
            "the kernel, vCPU 1",
            "0x100005000",
            "the guest reset itself",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }
}
