//! What a request leaves behind on its thread.

use super::Fate::{Detected, Harmless};
use super::{ANYWHERE, Kind, Origin, kind, sure};
use crate::arm::Point::{End, Member};

const fn left(name: &'static str, errors: &'static [&'static str]) -> Kind {
    kind(name, Origin::Injected(errors), ANYWHERE, &[], Detected)
}

/// At the very end: nothing of the server's own runs after it but its return.
const fn kept(name: &'static str, errors: &'static [&'static str]) -> Kind {
    kind(name, Origin::Injected(errors), &[End], &[], Harmless)
}

/// The kinds.
pub(super) const KINDS: &[Kind] = &[
    left("signal mask left changed", &["mask"]),
    left("alternate signal stack left changed", &["alt-stack"]),
    left(
        "cancellation state and type left changed",
        &["cancel-state"],
    ),
    left("locale left changed", &["locale"]),
    left("control words left changed", &["controls"]),
    left("flags left set", &["flags"]),
    kept("flags set at the return", &["flags-kept"]),
    kept("control words changed at the return", &["controls-kept"]),
    left("cleanup handler left pushed", &["cleanup"]),
    left("cleanup handler jumped over", &["cleanup-jumped"]),
    left("wild string printed to a stream", &["print"]),
    left(
        "error while a C++ exception is handled",
        &["caught", "unwinding"],
    ),
    left("robust mutex left locked", &["robust"]),
    left("broken pipe while SIGPIPE is blocked", &["broken-pipe"]),
    left("restartable sequences taken away", &["rseq"]),
    sure(
        "state left changed by another thread of the request",
        &[
            "mask",
            "alt-stack",
            "cancel-state",
            "controls",
            "flags",
            "cleanup",
            "print",
            "caught",
            "robust",
        ],
        &[Member],
        Detected,
    ),
];
