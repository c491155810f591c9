//! Changed calls in the server's own code, which nothing can tell from right ones.

use super::Fate::OwnDamage;
use super::{Kind, Origin, kind};
use crate::arm::Point::{self, Alloc, Copy, Enter, Free, Leave, Root};
use crate::task::Task;

const fn mutation(
    name: &'static str,
    error: &'static [&'static str],
    points: &'static [Point],
    tasks: &'static [Task],
) -> Kind {
    kind(name, Origin::Injected(error), points, tasks, OwnDamage)
}

/// The kinds.
pub(super) const KINDS: &[Kind] = &[
    mutation("mutation: shorter allocation", &["shorten"], &[Alloc], &[]),
    mutation("mutation: freed too early", &["early-free"], &[Alloc], &[]),
    mutation(
        "mutation: bit flipped in a pointer",
        &["flip"],
        &[Alloc, Root, Free],
        &[],
    ),
    mutation(
        "mutation: memory not initialised",
        &["dirty"],
        &[Alloc],
        &[Task::NewUser],
    ),
    mutation("mutation: allocation fails", &["skip"], &[Alloc], &[]),
    mutation(
        "mutation: pointer into another domain",
        &["elsewhere"],
        &[Alloc, Root, Free],
        &[],
    ),
    mutation("mutation: freed twice", &["twice"], &[Free], &[]),
    mutation("mutation: not freed", &["skip"], &[Free], &[]),
    mutation("mutation: copy too long", &["longer"], &[Copy], &[]),
    mutation("mutation: copy too short", &["shorter"], &[Copy], &[]),
    mutation("mutation: copy left out", &["skip"], &[Copy], &[]),
    mutation("mutation: lock not taken", &["skip"], &[Enter], &[]),
    mutation("mutation: lock taken twice", &["twice"], &[Enter], &[]),
    mutation(
        "mutation: lock not given back",
        &["skip"],
        &[Leave],
        &[Task::Directory],
    ),
    mutation(
        "mutation: lock given back twice",
        &["twice"],
        &[Leave],
        &[Task::Directory],
    ),
];
