//! What a request leaves behind on its thread.

use super::Fate::{Detected, Harmless};
use super::{ANYWHERE, Fate, Kind, Origin, kind, sure};
use crate::arm::Point::{self, Alloc, End, Entered, Member, Start};

/// Where nothing of the server's own runs after the error but its return.
const LAST: &[Point] = &[End];
/// Where the rest of the request's code runs on with what the error has changed.
const EARLY: &[Point] = &[Start, End, Entered, Alloc];

const fn left(name: &'static str, errors: &'static [&'static str]) -> Kind {
    kind(name, Origin::Injected(errors), ANYWHERE, &[], Detected)
}

const fn kept(
    name: &'static str,
    errors: &'static [&'static str],
    points: &'static [Point],
) -> Kind {
    const FATE: Fate = Harmless;
    kind(name, Origin::Injected(errors), points, &[], FATE)
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
    left("control words left changed", &["control-words"]),
    left("flags AC and DF left set", &["flags"]),
    kept("flags AC and DF set at the return", &["flags-kept"], LAST),
    left("cleanup handler left pushed", &["cleanup"]),
    kept("cleanup handler jumped over", &["cleanup-kept"], EARLY),
    left("wild string printed to a stream", &["print"]),
    left(
        "error while a C++ exception is handled",
        &["caught", "unwinding"],
    ),
    left("robust mutex left locked", &["robust"]),
    sure(
        "state left changed by another thread of the request",
        &[
            "mask",
            "alt-stack",
            "cancel-state",
            "control-words",
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
