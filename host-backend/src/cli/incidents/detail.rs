//! One incident as text, in the order in which a developer asks: what, who, where, and what it did.

use std::fmt::Write as _;

use vmsrs_protocol::incident::REGISTER_NAMES;

use super::changes::{change_at, place, rows};
use super::list::json_name;
use super::view::{IncidentView, folded};
use crate::cli::text::{self, address, facts, nanoseconds, printable, printable_or_dash, table};
use crate::control::{ChangeFacts, DraftFacts, IncidentFacts, LeftOpenFacts, RequestFacts};
use crate::size::Size;
use crate::symbols::{Found, Frame};

/// Changes, and rows of each, that are shown without --full.
const CHANGES: usize = 16;
const ROWS: usize = 4;

pub(super) fn describe(view: &IncidentView, full: bool) -> String {
    let mut text = format!("{}\n\n{}", headline(view), facts(&error(view)));
    for note in &view.trace.notes {
        let _ = writeln!(text, "\nnote: {}", printable(note));
    }
    if let Some(request) = view.detail.request() {
        text.push_str(&backtrace(&view.trace.frames, full));
        text.push_str(&changed(request, full));
        text.push_str(&dropped(request));
    }
    let _ = write!(text, "\nfacts\n{}", facts(&circumstances(view)));
    text.push_str(&registers(&kept_registers(view)));
    text
}

/// Which incident it is, in a line.
pub(super) fn headline(view: &IncidentView) -> String {
    let summary = &view.detail.summary;
    format!(
        "Incident {}: {}, {}",
        summary.number,
        printable(&summary.kind),
        json_name(summary.outcome)
    )
}

/// The registers of an incident with their names; empty if there are none.
pub(super) fn kept_registers(view: &IncidentView) -> Vec<(&'static str, u64)> {
    let registers: &[u64] = match &view.detail.facts {
        IncidentFacts::Request(request) => &request.registers,
        IncidentFacts::SealedWrite(write) => &write.registers,
        IncidentFacts::GuestDown(_) | IncidentFacts::Corruption(_) => &[],
    };
    let named = || REGISTER_NAMES.into_iter().zip(registers.iter().copied());
    // The library notes no others for an error that it finds itself.
    let places = |name: &str| ["rbp", "rsp", "rip"].contains(&name);
    let is_found = named().all(|(name, value)| value == 0 || places(name));
    named()
        .filter(|&(name, _)| !is_found || places(name))
        .collect()
}

/// Bytes of an instruction, or `-`.
fn code(bytes: &[u8]) -> String {
    let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    match bytes.is_empty() {
        true => "-".to_owned(),
        false => bytes.join(" "),
    }
}

/// What a developer asks first: where the error is, what it hit, and whose request it was.
pub(super) fn error(view: &IncidentView) -> Vec<(&'static str, String)> {
    let summary = &view.detail.summary;
    let request = view.detail.request();
    let mut rows = Vec::new();
    if let Some(culprit) = view.culprit() {
        rows.push(("in", printable(&culprit)));
    } else if view.is_found_by_audit() {
        rows.push((
            "found by",
            "the audit at the end of the request; the changes show what was written".to_owned(),
        ));
    }
    let mut at = address(summary.address);
    if let Some(is) = &view.address_is {
        let _ = write!(at, " ({})", printable(is));
    }
    rows.push(("address", at));
    let hit = (summary.address.zip(request)).and_then(|(at, request)| change_at(at, request));
    rows.extend(hit.map(|change| ("written there", written(change))));
    let message = request.and_then(|request| request.program.as_ref());
    let message = message.map(|program| &program.message);
    if let Some(message) = message.filter(|message| !message.is_empty()) {
        rows.push(("message", printable(message)));
    }
    rows.push(("app", printable_or_dash(summary.app.as_deref())));
    rows.push(("domain", printable_or_dash(summary.domain.as_deref())));
    rows
}

/// A change in a line: how much, and how it begins.
fn written(change: &ChangeFacts) -> String {
    let first = change.new.chunks(super::changes::ROW).next();
    let more = if change.new.len() > super::changes::ROW {
        ", beginning with"
    } else {
        ":"
    };
    format!(
        "{} bytes from {:#x} on{more} {}",
        change.new.len(),
        change.address,
        code(first.unwrap_or_default())
    )
}

/// The other facts that fit in a line each.
pub(super) fn circumstances(view: &IncidentView) -> Vec<(&'static str, String)> {
    let detail = &view.detail;
    let number = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let mut rows = vec![
        ("time (UTC)", text::time(detail.summary.at_ms)),
        ("instruction", address(detail.instruction)),
    ];
    match &detail.facts {
        IncidentFacts::SealedWrite(write) => {
            let mode = if write.user {
                "user mode"
            } else {
                "the kernel"
            };
            rows.extend([
                (
                    "written by",
                    format!("{mode} (CPL {}), vCPU {}", write.cpl, write.vcpu),
                ),
                ("page tables", format!("{:#x} (CR3)", write.cr3)),
                ("code", code(&write.code)),
                ("frame", write.frame.to_string()),
                ("page", number(write.page)),
                ("guest physical", format!("{:#x}", write.physical)),
                ("attempts", write.count.to_string()),
            ]);
        }
        IncidentFacts::Corruption(corruption) => {
            rows.extend([
                ("frame", corruption.frame.to_string()),
                ("page", number(corruption.page)),
                ("bytes changed", number(corruption.changed_bytes)),
                ("first at", address(corruption.first_changed.map(u64::from))),
            ]);
        }
        IncidentFacts::GuestDown(down) => {
            rows.extend([
                ("how", printable(&down.reason)),
                ("domains opened", down.domains.to_string()),
                (
                    "pool frames forgotten",
                    format!("{} (drafts, and commits not sealed)", down.pool_frames),
                ),
                ("pages of a batch cut off", down.staged_pages.to_string()),
            ]);
        }
        IncidentFacts::Request(request) => {
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
                ("restored to", json_name(request.restored)),
                ("drafts dropped", request.drafts_total.to_string()),
            ]);
            rows.extend(request.left_open.map(|left| ("left open", left_open(left))));
        }
    }
    rows
}

/// What a failed request has left open, as a phrase.
fn left_open(left: LeftOpenFacts) -> String {
    let descriptors = match left.descriptors {
        0 => None,
        1 => Some("1 descriptor".to_owned()),
        more => Some(format!("{more} descriptors")),
    };
    let memory = (left.bytes != 0).then(|| format!("{} of memory", Size(left.bytes)));
    let parts: Vec<_> = descriptors.into_iter().chain(memory).collect();
    match (parts.is_empty(), left.is_estimate) {
        (true, _) => "nothing that was counted".to_owned(),
        (false, false) => parts.join(", "),
        (false, true) => format!(
            "about {} (other threads or requests may have had a part in it)",
            parts.join(", ")
        ),
    }
}

/// Where a frame is: function and offset or module and offset.
pub(super) fn frame_name(frame: &Frame) -> String {
    match &frame.function {
        Some(function) => printable(function),
        None => match (&frame.module, frame.module_offset) {
            (Some(module), Some(offset)) => format!("{}+{offset:#x}", printable(module)),
            _ => "?".to_owned(),
        },
    }
}

/// The source line of a frame; empty if it is not known.
pub(super) fn frame_line(frame: &Frame) -> String {
    match (&frame.file, frame.line) {
        (Some(file), Some(line)) => format!("{}:{line}", printable(file)),
        (Some(file), None) => printable(file),
        _ => String::new(),
    }
}

fn backtrace(frames: &[Frame], full: bool) -> String {
    let mut text = String::new();
    if frames.is_empty() {
        return text;
    }
    text.push_str("\nbacktrace\n");
    for group in folded(frames) {
        if group.is_folded && !full {
            let _ = writeln!(text, "       ({}: see --full)", group.name());
        } else {
            group.frames.iter().for_each(|frame| call(&mut text, frame));
        }
    }
    text
}

fn call(text: &mut String, frame: &Frame) {
    let mark = match frame.found {
        Found::Scan => "?",
        _ => " ",
    };
    let inlined = if frame.inlined { " (inlined)" } else { "" };
    let _ = writeln!(
        text,
        " {mark}#{:<3} {:#018x}  {}{inlined}",
        frame.level,
        frame.address,
        frame_name(frame)
    );
    let line = frame_line(frame);
    if !line.is_empty() {
        let _ = writeln!(text, "{:28}at {line}", "");
    }
}

/// How many bytes a draft had changed, or `-`.
pub(super) fn bytes_changed(draft: &DraftFacts) -> String {
    draft
        .changed_bytes
        .map_or_else(|| "-".to_owned(), |bytes| bytes.to_string())
}

fn dropped(request: &RequestFacts) -> String {
    if request.drafts.is_empty() {
        return String::new();
    }
    let row = |draft: &DraftFacts| {
        [
            printable(&draft.domain),
            draft.page.to_string(),
            format!("{:#x}", draft.address),
            bytes_changed(draft),
            address(draft.first_changed.map(u64::from)),
        ]
    };
    let rows: Vec<_> = request.drafts.iter().map(row).collect();
    let head = ["DOMAIN", "PAGE", "ADDRESS", "BYTES CHANGED", "FIRST AT"];
    let mut text = format!("\ndropped drafts\n{}", table(head, &rows));
    let more = (request.drafts_total as usize).saturating_sub(rows.len());
    if more != 0 {
        let _ = writeln!(text, "and {more} more");
    }
    text
}

fn changed(request: &RequestFacts, full: bool) -> String {
    let mut text = String::new();
    if request.details_dropped {
        text.push_str("\nchanges: no longer kept, they made room for younger incidents\n");
        return text;
    }
    let (limit, row_limit) = if full {
        (usize::MAX, usize::MAX)
    } else {
        (CHANGES, ROWS)
    };
    let all = request
        .drafts
        .iter()
        .flat_map(|draft| draft.changes.iter().map(move |change| (draft, change)));
    let count = all.clone().count();
    if count != 0 {
        text.push_str("\nchanges (- before, + what the request had written)\n");
    }
    for (draft, change) in all.take(limit) {
        let length = change.new.len();
        let _ = writeln!(
            text,
            "{} page {}: {length} bytes at {:#x}, {}",
            printable(&draft.domain),
            draft.page,
            change.address,
            place(change)
        );
        for (address, old, new) in rows(change, row_limit) {
            let _ = writeln!(text, "  {address:#x}  - {old}");
            let _ = writeln!(
                text,
                "  {:width$}  + {new}",
                "",
                width = 2 + hex_digits(address)
            );
        }
        let shown = row_limit.saturating_mul(super::changes::ROW);
        if length > shown {
            let _ = writeln!(text, "  ... {} more bytes: see --full", length - shown);
        }
    }
    if count > limit {
        let _ = writeln!(text, "... {} more changes: see --full", count - limit);
    }
    text
}

fn hex_digits(number: u64) -> usize {
    format!("{number:x}").len()
}

fn registers(registers: &[(&str, u64)]) -> String {
    let mut text = String::new();
    if registers.is_empty() {
        return text;
    }
    text.push_str("\nregisters\n");
    for line in registers.chunks(3) {
        for (name, value) in line {
            let _ = write!(text, "{name:>6} {value:016x}  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::control::GuestDownFacts;
    use vmsrs_protocol::incident::{REG_RIP, REGISTERS};

    /// The expected text; `VMSRS_BLESS=1` rewrites it.
    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/incidents/sample.txt");

    #[test]
    fn an_incident_reads_as_the_sample_does() {
        let text = describe(&sample::view(), false);
        if std::env::var_os("VMSRS_BLESS").is_some() {
            std::fs::write(GOLDEN, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(GOLDEN).unwrap());
    }

    #[test]
    fn all_bytes_are_shown_when_asked_for() {
        let view = sample::view();
        let short = describe(&view, false);
        let full = describe(&view, true);
        assert!(short.contains("see --full") && !full.contains("see --full"));
        assert!(full.len() > short.len());
    }

    #[test]
    fn what_is_left_open_is_a_phrase() {
        let left = |descriptors, bytes, is_estimate| {
            left_open(LeftOpenFacts {
                descriptors,
                bytes,
                is_estimate,
            })
        };
        assert_eq!(left(0, 0, true), "nothing that was counted");
        assert_eq!(left(2, 0, false), "2 descriptors");
        assert_eq!(left(0, 8192, false), "8K of memory");
        assert!(left(1, 4 << 20, true).starts_with("about 1 descriptor, 4M of memory (other"));
        let view = sample::view();
        assert!(describe(&view, false).contains("left open       1 descriptor, 4M of memory"));
    }

    #[test]
    fn registers_that_nobody_noted_are_left_out() {
        let mut view = sample::view();
        if let IncidentFacts::Request(request) = &mut view.detail.facts {
            request.registers = vec![0; REGISTERS];
            request.registers[REG_RIP] = 5;
        }
        let text = describe(&view, false);
        assert!(text.contains("rip 0000000000000005"), "{text}");
        assert!(!text.contains("rax"), "{text}");
    }

    #[test]
    fn host_only_facts_are_shown() {
        let mut view = sample::view();
        view.detail.facts = IncidentFacts::SealedWrite(sample::sealed_write());
        let mut text = describe(&view, false);
        view.detail.facts = IncidentFacts::GuestDown(GuestDownFacts {
            reason: "the guest reset itself".into(),
            pool_frames: 1024,
            domains: 3,
            staged_pages: 0,
        });
        text += &describe(&view, false);
        for part in [
            "the kernel (CPL 0), vCPU 1",
            "0x100005000",
            "0x12345000 (CR3)",
            "48 89 07",
            "rip 0000000000000110",
            "the guest reset itself",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }

    #[test]
    fn guest_text_cannot_control_the_terminal() {
        let text = describe(&sample::hostile(), true);
        assert!(
            text.chars().all(|c| c == '\n' || !c.is_control()),
            "{text:?}"
        );
    }
}
