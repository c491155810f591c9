//! One page of HTML that needs nothing else: no script, no font, no picture from anywhere. Everything
//! of the guest goes through [`escape`], and a content security policy forbids the rest.

use std::fmt::Write as _;

use super::changes::{place, row};
use super::detail::{frame_line, frame_name, kept_registers, rows_of};
use super::list;
use super::shown::Shown;
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
pre,code,.mono{font-family:ui-monospace,monospace;font-size:.85rem;overflow-wrap:anywhere}
pre{margin:.3rem 0 1rem;overflow-x:auto;overflow-wrap:normal}
.quiet{color:var(--quiet)}.old{color:var(--old)}.new{color:var(--new)}
details{margin:.4rem 0}summary{cursor:pointer}
svg{max-width:100%;height:auto;font:11px ui-monospace,monospace}
svg text{fill:currentColor}
";

/// Text for an element or an attribute. Characters that control a terminal or the direction of text
/// are replaced, so that what is seen is what is there.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in printable(text).chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

fn document(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        escape(title)
    )
}

/// The page of the list.
pub(super) fn list(list: &[IncidentSummary]) -> String {
    let mut body = String::from("<h1>Incidents</h1>\n<div class=\"wide\"><table>\n<tr>");
    for cell in list::HEAD {
        // Writing to a string cannot fail, here and below.
        let _ = write!(body, "<th>{}</th>", escape(cell));
    }
    body.push_str("</tr>\n");
    for incident in list {
        body.push_str("<tr>");
        for cell in list::row(incident) {
            let _ = write!(body, "<td>{}</td>", escape(&cell));
        }
        body.push_str("</tr>\n");
    }
    body.push_str("</table></div>\n");
    document("VMSRS incidents", &body)
}

/// The page of one incident.
pub(super) fn incident(shown: &Shown) -> String {
    let summary = &shown.detail.summary;
    let title = format!("Incident {}: {}", summary.number, summary.kind);
    let mut body = format!("<h1>{}</h1>\n<table>\n", escape(&title));
    for (name, value) in rows_of(shown) {
        let (name, value) = (escape(name), escape(&value));
        let _ = writeln!(body, "<tr><th>{name}</th><td>{value}</td></tr>");
    }
    body.push_str("</table>\n");
    for note in &shown.trace.notes {
        let _ = writeln!(body, "<p class=\"quiet\">Note: {}</p>", escape(note));
    }
    if let Some(request) = shown.detail.request() {
        body.push_str(&backtrace(&shown.trace.frames));
        body.push_str(&pages(request, summary.address));
    }
    body.push_str(&registers(&kept_registers(shown)));
    document(&title, &body)
}

fn backtrace(frames: &[Frame]) -> String {
    if frames.is_empty() {
        return String::new();
    }
    let lines = |frames: &mut dyn Iterator<Item = &Frame>| {
        let mut text = String::from("<div class=\"wide\"><table class=\"mono\">\n");
        for frame in frames {
            let mark = match frame.found {
                Found::Scan => "?",
                _ => "",
            };
            let inlined = if frame.inlined { " (inlined)" } else { "" };
            let _ = writeln!(
                text,
                "<tr><td>{mark}#{}</td><td>{}<span class=\"quiet\">{inlined}</span></td>\
                 <td>{}</td><td class=\"quiet\">{:#x}</td></tr>",
                frame.level,
                escape(&frame_name(frame)),
                escape(&frame_line(frame)),
                frame.address
            );
        }
        text.push_str("</table></div>\n");
        text
    };
    let mut text = String::from("<h2>Backtrace</h2>\n");
    if frames.iter().any(|frame| frame.machinery) {
        let inner = lines(&mut frames.iter().filter(|frame| frame.machinery));
        let _ = write!(
            text,
            "<details><summary>The panic itself</summary>\n{inner}</details>\n"
        );
    }
    text.push_str(&lines(&mut frames.iter().filter(|frame| !frame.machinery)));
    text
}

fn pages(request: &RequestFacts, address: Option<u64>) -> String {
    if request.drafts.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "<h2>Pages that the request had written: {}</h2>\n{}",
        request.drafts_total,
        map(&request.drafts, address)
    );
    if request.details_dropped {
        text.push_str(
            "<p>The changes are no longer kept: they made room for younger incidents.</p>\n",
        );
    }
    for draft in &request.drafts {
        let _ = writeln!(
            text,
            "<details{}><summary>{} page {} at <code>{:#x}</code>: {} bytes changed</summary>",
            if request.drafts.len() <= 4 {
                " open"
            } else {
                ""
            },
            escape(&draft.domain),
            draft.page,
            draft.address,
            draft.changed_bytes
        );
        for change in &draft.changes {
            let _ = writeln!(
                text,
                "<p><code>{:#x}</code>: {} bytes, {}</p>\n<pre>",
                change.address,
                change.new.len(),
                escape(&place(change))
            );
            let pairs = change.old.chunks(16).zip(change.new.chunks(16));
            for ((old, new), address) in pairs.zip((change.address..).step_by(16)) {
                let (old, new) = (escape(&row(old)), escape(&row(new)));
                let _ = writeln!(text, "{address:#x} <span class=\"old\">- {old}</span>");
                let _ = writeln!(text, "{:14} <span class=\"new\">+ {new}</span>", "");
            }
            text.push_str("</pre>\n");
        }
        text.push_str("</details>\n");
    }
    text
}

/// Width of a page in the map, height of its row, and the room for its label.
const WIDTH: u64 = 768;
const HEIGHT: usize = 14;
const LABEL: u64 = 150;

/// The written pages, one row each, with a bar for each change and a mark at the address.
fn map(drafts: &[DraftFacts], address: Option<u64>) -> String {
    const PAGE: u64 = vmsrs_protocol::PAGE_SIZE as u64;
    let mut drafts: Vec<&DraftFacts> = drafts.iter().collect();
    drafts.sort_by_key(|draft| draft.address);
    let mut rows = String::new();
    let mut y = 0;
    let mut expected = None;
    for draft in drafts {
        if expected.is_some_and(|expected| expected != draft.address) {
            y += HEIGHT / 2;
        }
        expected = draft.address.checked_add(PAGE);
        let _ = writeln!(
            rows,
            "<text x=\"0\" y=\"{}\">{:#x}</text>\
             <rect x=\"{LABEL}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{}\" fill=\"#8883\">\
             <title>{} page {}: {} bytes changed</title></rect>",
            y + HEIGHT - 4,
            draft.address,
            HEIGHT - 2,
            escape(&draft.domain),
            draft.page,
            draft.changed_bytes
        );
        for change in &draft.changes {
            let offset = change.address.saturating_sub(draft.address).min(PAGE);
            let length = (change.new.len() as u64).min(PAGE - offset);
            let width = (length * WIDTH / PAGE).max(2);
            let _ = writeln!(
                rows,
                "<rect x=\"{}\" y=\"{y}\" width=\"{width}\" height=\"{}\" fill=\"#292\">\
                 <title>{length} bytes at {:#x}</title></rect>",
                LABEL + offset * WIDTH / PAGE,
                HEIGHT - 2,
                change.address
            );
        }
        let offset = address.and_then(|address| address.checked_sub(draft.address));
        if let Some(offset) = offset.filter(|&offset| offset < PAGE) {
            let _ = writeln!(
                rows,
                "<rect x=\"{}\" y=\"{y}\" width=\"3\" height=\"{HEIGHT}\" fill=\"#e50\">\
                 <title>the address</title></rect>",
                LABEL + offset * WIDTH / PAGE
            );
        }
        y += HEIGHT;
    }
    format!(
        "<svg viewBox=\"0 0 {} {}\" width=\"{}\" role=\"img\" \
         aria-label=\"Map of the written pages\">\n{rows}</svg>\n",
        LABEL + WIDTH + 4,
        y + 2,
        LABEL + WIDTH + 4
    )
}

fn registers(registers: &[(&str, u64)]) -> String {
    if registers.is_empty() {
        return String::new();
    }
    let mut text = String::from("<details><summary>Registers</summary>\n<pre>");
    for (name, value) in registers {
        let _ = writeln!(text, "{name:>6} {value:016x}");
    }
    text.push_str("</pre></details>\n");
    text
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
        let page = incident(&sample::shown());
        for part in [
            "<title>Incident 7: foreign-write</title>",
            "append at /src/ledger.c:42",
            "serve",
            "right behind the end of the block of 40 bytes",
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
        let mut shown = sample::shown();
        shown.detail.facts = IncidentFacts::SealedWrite(sample::sealed_write());
        let page = incident(&shown);
        for part in ["48 89 07", "CPL 0", "rip 0000000000000110"] {
            assert!(page.contains(part), "{part:?} in\n{page}");
        }
    }

    #[test]
    fn a_page_refers_to_nothing_outside_and_runs_nothing() {
        let page = incident(&sample::shown());
        for part in [
            "http://", "https://", "src=", "href=", "url(", "@import", "<script", "<link",
        ] {
            assert!(!page.contains(part), "{part}");
        }
        assert!(page.contains("default-src 'none'"));
    }

    #[test]
    fn text_of_the_guest_makes_no_element_and_no_attribute() {
        for (page, clean) in [
            (incident(&sample::hostile()), incident(&sample::shown())),
            (
                list(&[sample::hostile().detail.summary]),
                list(&[sample::shown().detail.summary]),
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
