//! Errors that cost their request, at chosen places.

use vmsrs_ledger::bug::Bug;

use super::Fate::Detected;
use super::{Kind, Origin, SUDDEN, kind, late, sudden, sure};
use crate::arm::Point::{Beside, Defer, End, Entered, Handed, Library, Member, Moment, Start};
use crate::task::Task;

const fn planted(name: &'static str, bug: Bug) -> Kind {
    kind(name, Origin::Planted(bug), &[], &[], Detected)
}

/// The kinds.
pub(super) const KINDS: &[Kind] = &[
    planted("planted: null write", Bug::NullWrite),
    planted("planted: heap overflow", Bug::HeapOverflow),
    planted("planted: overrun by a few bytes", Bug::SmallOverrun),
    planted("planted: use after free", Bug::UseAfterFree),
    planted("planted: double free", Bug::DoubleFree),
    planted("planted: stack overflow", Bug::StackOverflow),
    planted("planted: division by zero", Bug::DivisionByZero),
    planted("planted: failed assertion", Bug::Abort),
    planted("planted: wild write, shared lock held", Bug::WildWrite),
    sudden("null write", &["null-write"]),
    sudden("null read", &["null-read"]),
    sudden("read past the end of a file", &["bad-file"]),
    sudden("wild write", &["wild-write"]),
    sudden("foreign write", &["foreign-write"]),
    sudden("write to another request's draft", &["foreign-draft"]),
    sudden("write to code", &["code-write"]),
    sudden("wild jump", &["wild-jump"]),
    sudden("division by zero", &["division"]),
    sudden("illegal instruction", &["instruction"]),
    sudden("trap", &["trap"]),
    sudden("abort", &["abort"]),
    sudden("stack overflow", &["overflow"]),
    sudden("stack protector", &["smash"]),
    sudden("fortified copy", &["fortify"]),
    sudden("C++ exception", &["exception"]),
    sudden("C++ terminate", &["terminate"]),
    sudden("overrun of a block", &["overrun"]),
    sudden("write to a freed block", &["late-write"]),
    sudden("double free", &["double-free"]),
    sudden("free of an invalid pointer", &["foreign-free"]),
    sudden("C heap: double free", &["c-double-free"]),
    sudden("C heap: free of an invalid pointer", &["c-foreign-free"]),
    sudden("broken invariant", &["fail"]),
    // Only changed domains are checked, and a deposit always changes one.
    kind(
        "registered invariant does not hold",
        Origin::Injected(&["invariant", "invariant-error"]),
        &[Start, End, Entered],
        &[Task::Deposit],
        Detected,
    ),
    sudden("kernel write to a sealed frame", &["stray"]),
    late("endless loop", &["loop"]),
    late("endless sleep in a system call", &["sleep"]),
    late("deadlock", &["deadlock"]),
    kind(
        "error with two users' domains locked",
        Origin::Injected(SUDDEN),
        &[Start, End, Entered],
        &[Task::Transfer],
        Detected,
    ),
    kind(
        "error with the directory locked",
        Origin::Injected(SUDDEN),
        &[Entered],
        &[],
        Detected,
    ),
    kind(
        "error in the allocator",
        Origin::Injected(SUDDEN),
        &[Library],
        &[
            Task::NoteAdd,
            Task::NoteDelete,
            Task::NoteJoin,
            Task::NewUser,
        ],
        Detected,
    ),
    kind(
        "error at a random moment",
        Origin::Injected(SUDDEN),
        &[Moment],
        &[],
        Detected,
    ),
    sure(
        "error in another thread of the request",
        SUDDEN,
        &[Member],
        Detected,
    ),
    sure(
        "error while other threads of the request work",
        SUDDEN,
        &[Beside],
        Detected,
    ),
    sure(
        "error in a request handed to another thread",
        SUDDEN,
        &[Handed],
        Detected,
    ),
    kind(
        "second error in a defer",
        Origin::Injected(SUDDEN),
        &[Defer],
        &[],
        Detected,
    ),
];
