//! The kinds of errors, and what each may cost.

mod errors;
mod mutations;
mod process;
mod rare;
mod thread;

use vmsrs_ledger::bug::Bug;

use crate::arm::Point;
use crate::host::Harm;
use crate::task::Task;

pub use rare::{RARE, Rare};

/// What an error may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It must be detected: only the request is lost.
    Detected,
    /// The request may go on: it is lost, or its answer and all data are right, and nothing stays behind.
    Harmless,
    /// It changes the effect of the server's code. The request's own user may get a wrong answer or wrong data, which
    /// nothing can distinguish from right ones. All other users are unaffected.
    OwnDamage,
    /// It ends the server's process. Every commit survives.
    Kills,
    /// It takes the guest's kernel down. Every sealed commit survives.
    Panics,
    /// It damages memory outside of domains, and may end the process. Every commit survives.
    Untagged,
}

/// How a kind is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// By a bug of the server.
    Planted(Bug),
    /// By corrupting a sealed frame in the host's memory.
    Memory(Harm),
    /// By the injector, as one of these errors.
    Injected(&'static [&'static str]),
}

/// A kind of error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// The name in the report.
    pub name: &'static str,
    /// How it is made.
    pub origin: Origin,
    /// Where it strikes: one of these is drawn.
    pub points: &'static [Point],
    /// Requests that it is made in: one of these is drawn. Empty for all that pass the point.
    pub tasks: &'static [Task],
    /// What it may cost.
    pub fate: Fate,
    /// The request's deadline in milliseconds, 0 for none.
    pub deadline_ms: u32,
}

/// This many requests in flight have a protection key each: of the CPU's 16 keys, one is for all memory, five are for hot
/// domains, and one is for guarded memory.
pub const REQUESTS_WITH_OWN_KEYS: usize = 9;

/// Errors that only a deadline ends.
const ENDLESS: [&str; 5] = ["loop", "sleep", "deadlock", "library-loop", "system"];

/// The deadline of requests that nothing else ends.
const LATE_MS: u32 = 400;
/// The deadline of requests that come back by themselves, unless something is stuck.
const STUCK_MS: u32 = 20_000;

impl Kind {
    /// Whether only a deadline can detect it. If a deadline ends a request with another error, a thread did not come back.
    #[must_use]
    pub fn is_endless(&self) -> bool {
        matches!(self.origin, Origin::Injected(errors)
            if errors.iter().all(|error| ENDLESS.contains(error)))
    }

    /// Whether it hits memory that protection keys close, where the CPU has them: guarded variables, and drafts of other
    /// requests.
    #[must_use]
    pub fn depends_on_keys(&self) -> bool {
        self.is_guarded(1)
    }

    /// Whether protection keys close what it hits while this many requests may be in flight.
    #[must_use]
    pub fn is_guarded(&self, requests: usize) -> bool {
        match self.origin {
            Origin::Injected(["global"]) => true,
            Origin::Injected(["foreign-draft"]) => requests <= REQUESTS_WITH_OWN_KEYS,
            _ => false,
        }
    }

    /// Whether it leaves something behind on its thread. Another user's request follows on that thread, which then ends.
    #[must_use]
    pub fn stays_on_thread(&self) -> bool {
        thread::KINDS.contains(self)
    }

    /// Whether it costs its request at most, and ends nothing.
    #[must_use]
    pub fn ends_nothing(&self) -> bool {
        matches!(self.fate, Fate::Detected | Fate::Harmless | Fate::OwnDamage)
    }

    /// Whether it needs another request in flight.
    #[must_use]
    pub fn needs_company(&self) -> bool {
        matches!(self.origin, Origin::Injected(["foreign-draft"]))
    }
}

/// What a run can make errors with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tools {
    /// The server runs with the injector.
    pub injector: bool,
    /// The run can inspect the server's virtual machine.
    pub host: bool,
    /// The host's memory may be poisoned.
    pub poison: bool,
}

/// A tool is missing to make errors of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("errors of the kind '{kind}' need {needed}")]
pub struct Missing {
    /// The kind.
    pub kind: &'static str,
    /// What is missing.
    pub needed: &'static str,
}

impl Tools {
    /// What is missing to make errors of a kind, if anything.
    #[must_use]
    pub fn missing(self, kind: &Kind) -> Option<&'static str> {
        match kind.origin {
            Origin::Injected(_) if !self.injector => {
                Some("the injector, which only the C server has")
            }
            Origin::Memory(_) if !(self.injector && self.host) => {
                Some("a guest with the injector, and its host")
            }
            Origin::Memory(Harm::Poison) if !self.poison => {
                Some("the nested test-bed: this machine's own memory would be out of use")
            }
            _ => None,
        }
    }

    /// Checks that errors of these kinds can be made.
    ///
    /// # Errors
    ///
    /// [`Missing`] if not.
    pub fn check(self, only: &[&'static Kind]) -> Result<(), Missing> {
        let missing = |kind: &&'static Kind| Some((kind.name, self.missing(kind)?));
        match only.iter().find_map(missing) {
            Some((kind, needed)) => Err(Missing { kind, needed }),
            None => Ok(()),
        }
    }
}

use Fate::Detected;
use Point::{Alloc, Copy, End, Enter, Entered, Free, Leave, Root, Start};

/// Ordinary places in a request.
const ANYWHERE: &[Point] = &[Start, End, Root, Alloc, Free, Enter, Entered, Leave, Copy];
/// Errors that fail at once wherever they are made.
const SUDDEN: &[&str] = &[
    "null-write",
    "null-read",
    "wild-write",
    "foreign-write",
    "division",
    "instruction",
    "abort",
    "overflow",
];

const fn kind(
    name: &'static str,
    origin: Origin,
    points: &'static [Point],
    tasks: &'static [Task],
    fate: Fate,
) -> Kind {
    Kind {
        name,
        origin,
        points,
        tasks,
        fate,
        deadline_ms: 0,
    }
}

const fn sudden(name: &'static str, error: &'static [&'static str]) -> Kind {
    kind(name, Origin::Injected(error), ANYWHERE, &[], Detected)
}

const fn late(name: &'static str, error: &'static [&'static str]) -> Kind {
    Kind {
        deadline_ms: LATE_MS,
        ..kind(
            name,
            Origin::Injected(error),
            &[Start, End, Entered, Alloc, Copy],
            &[],
            Detected,
        )
    }
}

/// The deadline is for what does not come back: a request that it ends is a hang.
const fn sure(
    name: &'static str,
    errors: &'static [&'static str],
    points: &'static [Point],
    fate: Fate,
) -> Kind {
    Kind {
        deadline_ms: STUCK_MS,
        ..kind(name, Origin::Injected(errors), points, &[], fate)
    }
}

/// The families of kinds that a run cycles through.
const FAMILIES: [&[Kind]; 4] = [
    errors::KINDS,
    thread::KINDS,
    process::KINDS,
    mutations::KINDS,
];

/// The kinds that a run cycles through.
pub fn common() -> impl Iterator<Item = &'static Kind> {
    FAMILIES.into_iter().flatten()
}

/// All kinds, in the order of the report.
pub fn all() -> impl Iterator<Item = &'static Kind> {
    common().chain(RARE.iter().map(|rare| &rare.kind))
}

/// Whether one of the injector's errors damages memory outside of domains.
#[must_use]
pub fn is_untagged(error: &str) -> bool {
    all().any(|kind| {
        kind.fate == Fate::Untagged
            && matches!(kind.origin, Origin::Injected(errors) if errors.contains(&error))
    })
}

/// How often a plan of this many errors has the kind, if at all.
#[must_use]
pub fn turns(kind: &Kind, errors: u64) -> u64 {
    match RARE.iter().find(|rare| rare.kind.name == kind.name) {
        Some(rare) => errors.saturating_sub(rare.first).div_ceil(rare.period),
        // Rare kinds take some of them.
        None => errors / (common().count() as u64 + 1),
    }
}

/// The kind with this name.
///
/// # Errors
///
/// When there is none: lists all names.
pub fn named(name: &str) -> Result<&'static Kind, String> {
    all().find(|kind| kind.name == name).ok_or_else(|| {
        let names: Vec<_> = all().map(|kind| kind.name).collect();
        format!("the kinds are:\n  {}", names.join("\n  "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct() {
        let names: std::collections::BTreeSet<_> = all().map(|kind| kind.name).collect();
        assert_eq!(names.len(), all().count());
    }

    #[test]
    fn a_kind_is_found_by_its_name() {
        assert_eq!(named("division by zero").unwrap().name, "division by zero");
        assert!(
            named("division")
                .unwrap_err()
                .contains("\n  division by zero\n")
        );
    }

    #[test]
    fn a_kind_needs_its_tools() {
        let wants = |name: &str, injector, host, poison| {
            let tools = Tools {
                injector,
                host,
                poison,
            };
            tools.check(&[named(name).unwrap()]).is_err()
        };
        assert!(!wants("planted: division by zero", false, false, false));
        assert!(wants("division by zero", false, true, true));
        assert!(!wants("division by zero", true, false, false));
        assert!(wants(
            "bit flip in a sealed frame with a mirror",
            true,
            false,
            true
        ));
        assert!(!wants(
            "bit flip in a sealed frame with a mirror",
            true,
            true,
            false
        ));
        assert!(wants(
            "poisoned memory of a sealed frame with a mirror",
            true,
            true,
            false
        ));
    }

    #[test]
    fn only_endless_errors_end_by_their_deadline() {
        for kind in all() {
            assert_eq!(
                kind.is_endless(),
                kind.deadline_ms == LATE_MS,
                "{}",
                kind.name
            );
        }
    }

    #[test]
    fn only_mutations_may_damage_their_own_user() {
        for kind in all() {
            if let Origin::Injected(errors) = kind.origin {
                let mutations = errors
                    .iter()
                    .all(|error| crate::arm::MUTATIONS.contains(error));
                assert_eq!(mutations, kind.fate == Fate::OwnDamage, "{}", kind.name);
            }
        }
    }

    #[test]
    fn the_injector_knows_every_error_and_every_point() {
        let injector = include_str!("../../inject/line.c");
        for kind in all() {
            let Origin::Injected(errors) = kind.origin else {
                continue;
            };
            assert!(!kind.points.is_empty(), "{}", kind.name);
            let points = kind.points.iter().map(|point| point.name());
            for name in errors.iter().copied().chain(points) {
                assert!(injector.contains(&format!("\"{name}\"")), "{name}");
            }
        }
    }
}
