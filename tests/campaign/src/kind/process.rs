//! Errors that reach the library or the process by other ways than memory: calls, descriptors, children, signals,
//! jumps.

use super::Fate::{Detected, Harmless};
use super::{ANYWHERE, Kind, late, sure};
use crate::arm::Point::{self, Alloc, Copy, End, Enter, Entered, Free, Leave, Moment, Root, Start};

/// Where a handler can interrupt a request.
const INTERRUPTED: &[Point] = &[
    Start, End, Root, Alloc, Free, Enter, Entered, Leave, Copy, Moment,
];

/// The kinds.
pub(super) const KINDS: &[Kind] = &[
    sure(
        "wild argument to a function of the library",
        &["wild-call"],
        ANYWHERE,
        Detected,
    ),
    late("endless calls of the library", &["library-loop"]),
    late("endless program run by system()", &["system"]),
    sure("frame of a wild size", &["frame"], ANYWHERE, Detected),
    sure(
        "stray close of the library's low descriptors",
        &["close-low"],
        ANYWHERE,
        Harmless,
    ),
    sure(
        "stray close of one of the library's descriptors",
        &["close"],
        ANYWHERE,
        Harmless,
    ),
    sure(
        "stray close, and the number given to a socket",
        &["reuse"],
        ANYWHERE,
        Harmless,
    ),
    sure("vfork child", &["vfork"], ANYWHERE, Harmless),
    sure("longjmp out of the request", &["jump"], ANYWHERE, Detected),
    sure(
        "error in a signal handler of the server",
        &["handler"],
        INTERRUPTED,
        Detected,
    ),
    sure(
        "signal handler of the server that does not return",
        &["handler-jump"],
        ANYWHERE,
        Detected,
    ),
];
