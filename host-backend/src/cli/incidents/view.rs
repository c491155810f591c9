//! An incident with what this process adds to it: names for addresses, and their owners.

use serde::Serialize;

use super::changes::past_block;
use crate::control::IncidentDetail;
use crate::symbols::{Frame, SymbolFiles, Trace, describe_owner, trace};

/// An incident as it is view.
#[derive(Debug, Serialize)]
pub(super) struct IncidentView {
    #[serde(flatten)]
    pub(super) detail: IncidentDetail,
    /// The owner of the address, in words.
    pub(super) address_is: Option<String>,
    /// The backtrace with names.
    #[serde(flatten)]
    pub(super) trace: Trace,
}

impl IncidentView {
    pub(super) fn new(detail: IncidentDetail, files: &SymbolFiles) -> Self {
        let request = detail.request();
        let address_is = detail
            .summary
            .address
            .zip(request)
            .map(|(address, request)| match past_block(address, request) {
                Some(block) => format!("{}, {block}", describe_owner(address, request)),
                None => describe_owner(address, request),
            });
        let trace = request.map_or_else(Trace::default, |request| trace(request, files));
        Self {
            detail,
            address_is,
            trace,
        }
    }

    /// Function and line of the code that failed: the first frame of the backtrace that is the
    /// server's own and has a line, or else the first with a name.
    pub(super) fn culprit(&self) -> Option<String> {
        let frames = || self.trace.frames.iter();
        let own = || frames().filter(|frame| !is_folded(frame));
        let frame = own()
            .find(|frame| frame.line.is_some())
            .or_else(|| own().find(|frame| frame.function.is_some()))?;
        let function = frame.function.as_deref().unwrap_or("?");
        Some(match (&frame.file, frame.line) {
            (Some(file), Some(line)) => format!("{function} at {file}:{line}"),
            _ => function.to_owned(),
        })
    }

    /// Whether the audit found the error after the server's code had returned: nothing is on the stack
    /// but the library then.
    pub(super) fn is_found_by_audit(&self) -> bool {
        let mut own =
            (self.trace.frames.iter()).filter(|frame| frame.module.is_some() && !is_library(frame));
        AUDITED.contains(&self.detail.summary.kind.as_str())
            && self.trace.frames.iter().any(is_library)
            && own.next().is_none()
    }
}

/// The kinds that an audit finds.
const AUDITED: [&str; 6] = [
    "red-zone",
    "use-after-free",
    "heap-corrupt",
    "double-free",
    "foreign-free",
    "invariant",
];

/// Neighbouring frames of a backtrace.
#[derive(Debug)]
pub(super) struct Group<'a> {
    /// At least one.
    pub(super) frames: &'a [Frame],
    /// They are not the server's own.
    pub(super) is_folded: bool,
}

impl Group<'_> {
    /// What is folded, as a phrase.
    pub(super) fn name(&self) -> String {
        match self.frames.len() {
            1 => "1 frame of the library or of Rust".to_owned(),
            count => format!("{count} frames of the library or of Rust"),
        }
    }
}

/// A backtrace, divided into frames of the server's own and others.
pub(super) fn folded(frames: &[Frame]) -> impl Iterator<Item = Group<'_>> {
    let groups = frames.chunk_by(|one, next| is_folded(one) == is_folded(next));
    groups.map(|frames| Group {
        frames,
        is_folded: frames.iter().any(is_folded),
    })
}

fn is_folded(frame: &Frame) -> bool {
    frame.machinery || is_library(frame)
}

/// Whether a frame is Rust's standard library or this project's library, whose code fails for its
/// callers' faults.
fn is_library(frame: &Frame) -> bool {
    let function = frame.function.as_deref().unwrap_or_default();
    let module = frame.module.as_deref().unwrap_or_default();
    let module = module.rsplit('/').next().unwrap_or_default();
    match &frame.file {
        Some(file) => {
            file.starts_with("/rustc/")
                || file.starts_with("guest-lib/src/")
                || file.contains("/guest-lib/src/")
        }
        // Assembly, or a file without lines.
        None => {
            module.starts_with("libvmsrs.so")
                || function == "vmsrs_switch"
                || function == "__rust_try"
                || function.trim_start_matches('<').starts_with("vmsrs::")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{detail, page, sample};
    use super::*;

    /// A frame of a function in a file; without a line if there is none.
    fn frame(function: &str, file: Option<&str>) -> Frame {
        Frame {
            function: Some(function.to_owned()),
            file: file.map(str::to_owned),
            line: file.map(|_| 62),
            ..sample::view().trace.frames[0].clone()
        }
    }

    /// What the library's audit leaves of an overflow.
    fn audited() -> IncidentView {
        let mut view = sample::view();
        view.detail.summary.kind = "red-zone".to_owned();
        view.trace.frames = vec![
            frame(
                "vmsrs::thread::record::registers",
                Some("/src/vmsrs/guest-lib/src/thread/record.rs"),
            ),
            frame(
                "{closure#0}<()>",
                Some("/rustc/0123/library/std/src/panic.rs"),
            ),
            frame("vmsrs::run::enter", Some("guest-lib/src/run/mod.rs")),
            frame("vmsrs_switch", None),
        ];
        view
    }

    #[test]
    fn audit_findings_are_not_blamed_on_the_library() {
        let view = audited();
        assert_eq!(view.culprit(), None);
        for text in [detail::describe(&view, false), page::incident(&view)] {
            assert!(
                text.contains("the audit at the end of the request"),
                "{text}"
            );
            let row = text.split("backtrace").next().unwrap_or_default();
            let row = row.split("Backtrace").next().unwrap_or_default();
            assert!(!row.contains("record.rs"), "{row}");
        }
    }

    #[test]
    fn library_findings_are_blamed_on_the_caller() {
        let mut view = audited();
        view.trace.frames[3] = frame("drop_user", Some("/src/server.c"));
        assert_eq!(
            view.culprit().as_deref(),
            Some("drop_user at /src/server.c:62")
        );
        assert!(!view.is_found_by_audit());
    }

    #[test]
    fn without_symbols_no_culprit_is_named() {
        let mut view = audited();
        view.trace.frames[3].function = None;
        assert_eq!(view.culprit(), None);
        assert!(!view.is_found_by_audit());
    }

    #[test]
    fn address_past_a_block_is_described() {
        let mut detail = sample::view().detail;
        detail.summary.address = Some(0x1100_0000_3f2a);
        let view = IncidentView::new(detail, &SymbolFiles::new(&[]).unwrap());
        let is = view.address_is.unwrap();
        assert!(
            is.ends_with(", 2 bytes past the end of the block of 40 bytes at 0x110000003f00"),
            "{is}"
        );
    }

    #[test]
    fn what_was_written_at_the_address_stands_before_the_backtrace() {
        let mut view = sample::view();
        view.detail.summary.address = Some(0x1100_0000_3f2a);
        for text in [detail::describe(&view, false), page::incident(&view)] {
            let text = text.to_lowercase();
            let first = text.split("backtrace").next().unwrap_or_default();
            assert!(
                first.contains("208 bytes from 0x110000003f28 on, beginning with 41 41 41 41"),
                "{first}"
            );
        }
    }

    #[test]
    fn frames_of_the_library_are_folded_and_shown_in_full() {
        let view = audited();
        let short = detail::describe(&view, false);
        assert!(short.contains("(4 frames of the library or of Rust: see --full)"));
        assert!(!short.contains("vmsrs_switch"));
        assert!(detail::describe(&view, true).contains("vmsrs_switch"));
    }
}
