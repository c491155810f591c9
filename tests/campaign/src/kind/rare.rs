//! Kinds that end a process or a guest, or need a command on the host.

use super::Fate::{Detected, Kills, Panics, Untagged};
use super::{Kind, Origin, SUDDEN, kind};
use crate::arm::Point::{
    self, Alloc, Commit, Committed, Defer, End, Entered, Recovered, Recovery, Start,
};
use crate::host::Harm;

/// A kind that ends a process or a guest, or needs a command on the host: it is made less often.
#[derive(Debug, Clone, Copy)]
pub struct Rare {
    /// The kind.
    pub kind: Kind,
    /// Once in this many errors ...
    pub period: u64,
    /// ... and first at this one.
    pub first: u64,
}

const fn rare(kind: Kind, period: u64, first: u64) -> Rare {
    Rare {
        kind,
        period,
        first,
    }
}

/// Points at which the death of the process is a case of its own.
const DEATHS: &[Point] = &[
    Start, End, Alloc, Entered, Commit, Committed, Recovery, Recovered, Defer,
];

/// The kinds that cost more than a request.
pub const RARE: &[Rare] = &[
    rare(
        kind(
            "bit flip in a sealed frame with a mirror",
            Origin::Memory(Harm::Flip),
            &[],
            &[],
            Detected,
        ),
        120,
        25,
    ),
    rare(
        kind(
            "poisoned memory of a sealed frame with a mirror",
            Origin::Memory(Harm::Poison),
            &[],
            &[],
            Detected,
        ),
        400,
        60,
    ),
    rare(
        kind(
            "kill -9 of the server",
            Origin::Injected(&["kill"]),
            DEATHS,
            &[],
            Kills,
        ),
        300,
        40,
    ),
    rare(
        kind(
            "error of the library in commit or recovery",
            Origin::Injected(SUDDEN),
            &[Commit, Committed, Recovery, Recovered],
            &[],
            Untagged,
        ),
        800,
        70,
    ),
    rare(
        kind(
            "untagged: C heap",
            Origin::Injected(&["c-overrun"]),
            &[Start, End],
            &[],
            Untagged,
        ),
        1000,
        100,
    ),
    rare(
        kind(
            "untagged: stack of another thread",
            Origin::Injected(&["other-stack"]),
            &[Start, End],
            &[],
            Untagged,
        ),
        1000,
        130,
    ),
    rare(
        kind(
            "untagged: the server's variables",
            Origin::Injected(&["global"]),
            &[Start, End],
            &[],
            Untagged,
        ),
        1000,
        160,
    ),
    rare(
        kind(
            "panic of the guest's kernel",
            Origin::Injected(&["panic"]),
            &[Start, End, Entered, Commit, Committed],
            &[],
            Panics,
        ),
        4000,
        190,
    ),
];
