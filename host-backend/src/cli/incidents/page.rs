//! One page of HTML that needs nothing else: no script, no font, no picture from anywhere. The template
//! escapes what comes from the guest, and a content security policy forbids the rest.

use std::fmt::Write as _;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::changes::{place, row};
use super::detail::{
    bytes_changed, circumstances, error, frame_line, frame_name, headline, kept_registers,
};
use super::list;
use super::view::{IncidentView, folded};
use crate::cli::text::printable;
use crate::control::{DraftFacts, IncidentSummary, RequestFacts};
use crate::symbols::{Found, Frame};

const STYLE: &str = "
:root{color-scheme:light dark;--line:#8884;--quiet:#888;--old:#d33;--new:#292;--mark:#e50}
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse}
td,th{text-align:left;padding:.15rem .9rem .15rem 0;border-bottom:1px solid var(--line);
vertical-align:top}
.wide{overflow-x:auto}
.wide td,.facts th{white-space:nowrap}
pre,code,.mono{font-family:ui-monospace,monospace;font-size:.85rem;overflow-wrap:anywhere}
pre{margin:.3rem 0 1rem;overflow-x:auto;overflow-wrap:normal}
.quiet{color:var(--quiet)}.old{color:var(--old)}.new{color:var(--new)}
details{margin:.4rem 0}summary{cursor:pointer}
svg{max-width:100%;height:auto;font:11px ui-monospace,monospace}
svg text{fill:currentColor}
";

fn document(title: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta
                    http-equiv="Content-Security-Policy"
                    content="default-src 'none'; style-src 'unsafe-inline'";
                meta name="viewport" content="width=device-width";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { (body) }
        }
    };
    page.into_string()
}

/// The page of the list.
pub(super) fn list(list: &[IncidentSummary]) -> String {
    let body = html! {
        h1 { "Incidents" }
        div class="wide" {
            table {
                tr { @for cell in list::HEAD { th { (cell) } } }
                @for incident in list {
                    tr { @for cell in list::row(incident) { td { (cell) } } }
                }
            }
        }
    };
    document("VMSRS incidents", &body)
}

/// The page of one incident.
pub(super) fn incident(view: &IncidentView) -> String {
    let summary = &view.detail.summary;
    let title = headline(view);
    let body = html! {
        h1 { (title) }
        (table(&error(view)))
        @for note in &view.trace.notes {
            p class="quiet" { "Note: " (printable(note)) }
        }
        @if let Some(request) = view.detail.request() {
            (backtrace(&view.trace.frames))
            (pages(request, summary.address))
        }
        h2 { "Facts" }
        (table(&circumstances(view)))
        (registers(&kept_registers(view)))
    };
    document(&title, &body)
}

fn table(rows: &[(&str, String)]) -> Markup {
    html! {
        table class="facts" {
            @for (name, value) in rows {
                tr { th { (name) } td { (value) } }
            }
        }
    }
}

fn backtrace(frames: &[Frame]) -> Markup {
    html! {
        @if !frames.is_empty() {
            h2 { "Backtrace" }
            @for group in folded(frames) {
                @if group.is_folded {
                    details {
                        summary class="quiet" { (group.name()) }
                        (calls(group.frames))
                    }
                } @else {
                    (calls(group.frames))
                }
            }
        }
    }
}

fn calls(frames: &[Frame]) -> Markup {
    html! {
        div class="wide" {
            table class="mono" {
                @for frame in frames {
                    tr {
                        td { @if frame.found == Found::Scan { "?" } "#" (frame.level) }
                        td {
                            (frame_name(frame))
                            span class="quiet" { @if frame.inlined { " (inlined)" } }
                        }
                        td { (frame_line(frame)) }
                        td class="quiet" { (format!("{:#x}", frame.address)) }
                    }
                }
            }
        }
    }
}

fn pages(request: &RequestFacts, address: Option<u64>) -> Markup {
    html! {
        @if !request.drafts.is_empty() {
            h2 { "Pages that the request had written: " (request.drafts_total) }
            (map(&request.drafts, address))
            @if request.details_dropped {
                p { "The changes are no longer kept: they made room for younger incidents." }
            }
            @for draft in &request.drafts {
                details open[request.drafts.len() <= 4] {
                    summary {
                        (printable(&draft.domain)) " page " (draft.page) " at "
                        code { (format!("{:#x}", draft.address)) }
                        ": " (bytes_changed(draft)) " bytes changed"
                    }
                    @for change in &draft.changes {
                        p {
                            code { (format!("{:#x}", change.address)) }
                            ": " (change.new.len()) " bytes, " (place(change))
                        }
                        @let pairs = change.old.chunks(16).zip(change.new.chunks(16));
                        pre {
                            @for ((old, new), address) in pairs.zip((change.address..).step_by(16)) {
                                (format!("{address:#x} "))
                                span class="old" { "- " (row(old)) }
                                (format!("\n{:15}", ""))
                                span class="new" { "+ " (row(new)) }
                                "\n"
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Width of a page in the map, height of its row, and the room for its label.
const WIDTH: u64 = 768;
const HEIGHT: usize = 14;
const LABEL: u64 = 150;

/// The written pages, one row each, with a bar for each change and a mark at the address.
fn map(drafts: &[DraftFacts], address: Option<u64>) -> Markup {
    const PAGE: u64 = vmsrs_protocol::PAGE_SIZE as u64;
    let place = |offset: u64| LABEL + offset * WIDTH / PAGE;
    let mut drafts: Vec<&DraftFacts> = drafts.iter().collect();
    drafts.sort_by_key(|draft| draft.address);
    // Each page with its place from the top; half a row is left where pages between are not written.
    let mut rows = Vec::new();
    let mut y = 0;
    let mut expected = None;
    for draft in drafts {
        if expected.is_some_and(|expected| expected != draft.address) {
            y += HEIGHT / 2;
        }
        expected = draft.address.checked_add(PAGE);
        rows.push((draft, y));
        y += HEIGHT;
    }
    let width = LABEL + WIDTH + 4;
    html! {
        svg viewBox=(format!("0 0 {width} {}", y + 2)) width=(width) role="img"
            aria-label="Map of the written pages" {
            @for (draft, y) in rows {
                text x="0" y=(y + HEIGHT - 4) { (format!("{:#x}", draft.address)) }
                rect x=(LABEL) y=(y) width=(WIDTH) height=(HEIGHT - 2) fill="#8883" {
                    title {
                        (printable(&draft.domain)) " page " (draft.page) ": "
                        (bytes_changed(draft)) " bytes changed"
                    }
                }
                @for change in &draft.changes {
                    @let offset = change.address.saturating_sub(draft.address).min(PAGE);
                    @let length = (change.new.len() as u64).min(PAGE - offset);
                    rect x=(place(offset)) y=(y) width=((length * WIDTH / PAGE).max(2))
                        height=(HEIGHT - 2) fill="#292" {
                        title { (length) " bytes at " (format!("{:#x}", change.address)) }
                    }
                }
                @let offset = address.and_then(|address| address.checked_sub(draft.address));
                @if let Some(offset) = offset.filter(|&offset| offset < PAGE) {
                    rect x=(place(offset)) y=(y) width="3" height=(HEIGHT) fill="#e50" {
                        title { "the address" }
                    }
                }
            }
        }
    }
}

fn registers(registers: &[(&str, u64)]) -> Markup {
    let mut text = String::new();
    for (name, value) in registers {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:>6} {value:016x}");
    }
    html! {
        @if !registers.is_empty() {
            details {
                summary { "Registers" }
                pre { (text) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::control::IncidentFacts;

    /// The names of all elements in a page, by a parser of the little HTML that we write.
    fn elements(page: &str) -> Vec<&str> {
        page.split('<')
            .skip(1)
            .map(|rest| {
                let end = rest.find(['>', ' ', '\n']).unwrap_or(rest.len());
                rest[..end].trim_start_matches('/')
            })
            .collect()
    }

    #[test]
    fn a_page_has_function_line_and_changed_bytes() {
        let page = incident(&sample::view());
        for part in [
            "<title>Incident 7: foreign-write, recovered</title>",
            "append at /src/ledger.c:42",
            "1 frame of the library or of Rust</summary>",
            "serve",
            "immediately past the end of the block of 40 bytes",
            "41 41 41 41",
            "|AAAAAAAAAAAAAAAA|",
            "<svg ",
            "a sum does not add up",
        ] {
            assert!(page.contains(part), "{part:?} in\n{page}");
        }
    }

    #[test]
    fn a_write_that_was_stopped_has_its_code_and_registers() {
        let mut view = sample::view();
        view.detail.facts = IncidentFacts::SealedWrite(sample::sealed_write());
        let page = incident(&view);
        for part in ["48 89 07", "CPL 0", "rip 0000000000000110"] {
            assert!(page.contains(part), "{part:?} in\n{page}");
        }
    }

    #[test]
    fn page_is_self_contained_and_has_no_script() {
        let page = incident(&sample::view());
        for part in [
            "http://", "https://", "src=", "href=", "url(", "@import", "<script", "<link",
        ] {
            assert!(!page.contains(part), "{part}");
        }
        assert!(page.contains("default-src 'none'"));
    }

    #[test]
    fn guest_text_is_escaped_in_html() {
        for (page, clean) in [
            (incident(&sample::hostile()), incident(&sample::view())),
            (
                list(&[sample::hostile().detail.summary]),
                list(&[sample::view().detail.summary]),
            ),
        ] {
            let (mut found, mut expected) = (elements(&page), elements(&clean));
            found.sort_unstable();
            found.dedup();
            expected.sort_unstable();
            expected.dedup();
            assert_eq!(found, expected);
            assert!(!page.contains('\u{1b}') && !page.contains('\u{202e}'));
            // Every quote in it is one of ours: of an attribute, in pairs within its element.
            for element in page.split('<').skip(1) {
                let inside = element.split('>').next().unwrap_or_default();
                assert_eq!(inside.matches('"').count() % 2, 0, "{inside}");
            }
        }
    }
}
