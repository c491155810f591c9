//! An incident with what this process finds out about it: names for addresses, and whose they are.

use serde::Serialize;

use crate::engine::IncidentDetail;
use crate::symbols::{Frame, SymbolFiles, Trace, trace, whose};

/// An incident as it is shown.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    #[serde(flatten)]
    pub(super) detail: IncidentDetail,
    /// Whose the address is, in words.
    pub(super) address_is: Option<String>,
    /// The backtrace with names.
    #[serde(flatten)]
    pub(super) trace: Trace,
}

impl Shown {
    pub(super) fn new(detail: IncidentDetail, files: &SymbolFiles) -> Self {
        let request = detail.request.as_ref();
        let address_is = detail
            .summary
            .address
            .zip(request)
            .map(|(address, request)| whose(address, request));
        let trace = request.map_or_else(Trace::default, |request| trace(request, files));
        Self {
            detail,
            address_is,
            trace,
        }
    }

    /// Function and line of the code that failed: the first line of the backtrace that has a line and
    /// is the server's own, or else the first with a line, or with a name.
    pub(super) fn culprit(&self) -> Option<String> {
        let frames = || self.trace.frames.iter().filter(|frame| !frame.machinery);
        let frame = frames()
            .find(|frame| frame.line.is_some() && !is_library(frame))
            .or_else(|| frames().find(|frame| frame.line.is_some()))
            .or_else(|| frames().find(|frame| frame.function.is_some()))?;
        let function = frame.function.as_deref().unwrap_or("?");
        Some(match (&frame.file, frame.line) {
            (Some(file), Some(line)) => format!("{function} at {file}:{line}"),
            _ => function.to_owned(),
        })
    }
}

/// Whether a frame is Rust's standard library or this project's library, whose code fails for its
/// callers' faults.
fn is_library(frame: &Frame) -> bool {
    let file = frame.file.as_deref().unwrap_or_default();
    file.starts_with("/rustc/") || file.contains("/guest-lib/src/")
}
