//! The errors to make, drawn by seed.
//!
//! The plan is a pure function of the seed, the connection and the number of the error. It does not determine how the
//! requests of different connections interleave.

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use vmsrs_ledger::bug::Bug;

use crate::arm::{Arm, Point};
use crate::host::Harm;
use crate::kind::{Kind, Origin, RARE, Rare, common};
use crate::task::Task;

/// How an error is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// By a request that reaches a bug of the server.
    Bug(Bug),
    /// By corrupting the host's memory in a place that the number selects.
    Memory(Harm, u64),
    /// By the injector, in such a request.
    Arm(Arm, Task),
}

/// One error of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// Its kind.
    pub kind: &'static Kind,
    /// How it is made.
    pub means: Means,
    /// Ordinary requests before it.
    pub ordinary: u32,
    /// Seed of what is drawn later, when the state of its user is known.
    pub draw: u64,
}

/// The errors of one connection.
#[derive(Debug, Clone)]
pub struct Plan {
    seed: u64,
    connection: u64,
    connections: u64,
    restarts: bool,
    poison: bool,
    only: Vec<&'static Kind>,
}

impl Plan {
    /// The plan of a connection.
    #[must_use]
    pub fn new(seed: u64, connection: usize, connections: usize) -> Self {
        Self {
            seed,
            connection: connection as u64,
            connections: connections as u64,
            restarts: true,
            poison: true,
            only: Vec::new(),
        }
    }

    /// Whether it has the kinds that end the server's process or the guest, which is the default.
    #[must_use]
    pub fn with_restarts(self, restarts: bool) -> Self {
        Self { restarts, ..self }
    }

    /// Whether memory is poisoned, which is the default.
    #[must_use]
    pub fn with_poison(self, poison: bool) -> Self {
        Self { poison, ..self }
    }

    /// The kinds of all errors, in turn; without any, the default, the plan has all kinds.
    #[must_use]
    pub fn with_only(self, only: &[&'static Kind]) -> Self {
        let only = only.to_vec();
        Self { only, ..self }
    }

    /// Error number `number` of this connection, from 0. All connections together cycle through the kinds, each time in
    /// another order.
    #[must_use]
    pub fn error(&self, number: u64) -> Planned {
        let place = number * self.connections + self.connection;
        let mut rng = SmallRng::seed_from_u64(self.seed ^ mix(place + 1));
        let kind = self.kind(place);
        let means = match kind.origin {
            Origin::Planted(bug) => Means::Bug(bug),
            Origin::Memory(harm) => Means::Memory(harm, rng.random()),
            Origin::Injected(errors) => {
                let point = *kind.points.choose(&mut rng).unwrap_or(&Point::Start);
                let tasks = match kind.tasks {
                    [] => Task::passing(point),
                    tasks => tasks,
                };
                let arm = Arm {
                    point,
                    count: count(point, &mut rng),
                    error: errors.choose(&mut rng).copied().unwrap_or("none"),
                    parameter: u64::from(rng.random::<u32>()),
                    deadline_ms: kind.deadline_ms,
                    seal: rng.random_ratio(1, 16),
                };
                Means::Arm(arm, *tasks.choose(&mut rng).unwrap_or(&Task::Deposit))
            }
        };
        Planned {
            kind,
            means,
            ordinary: rng.random_range(0..4),
            draw: rng.random(),
        }
    }

    fn kind(&self, place: u64) -> &'static Kind {
        let due = |rare: &&Rare| {
            place % rare.period == rare.first
                && (self.restarts || rare.kind.ends_nothing())
                && (self.poison || rare.kind.origin != Origin::Memory(Harm::Poison))
        };
        let mut turn = self.only.clone();
        if turn.is_empty() {
            if let Some(rare) = RARE.iter().find(due) {
                return &rare.kind;
            }
            turn.extend(common());
        }
        let length = turn.len() as u64;
        turn.shuffle(&mut SmallRng::seed_from_u64(
            self.seed ^ mix(u64::MAX - place / length),
        ));
        turn[(place % length) as usize]
    }
}

/// The passage at which the error is made: most requests pass a point once or a few times.
fn count(point: Point, rng: &mut impl Rng) -> u64 {
    match point {
        Point::Alloc | Point::Free => rng.random_range(1..=2),
        Point::Copy => rng.random_range(1..=4),
        Point::Library => rng.random_range(1..=6),
        // Logarithmic: a request takes microseconds on a CPU and milliseconds on an emulated one.
        Point::Moment => 1 << rng.random_range(13..26),
        _ => 1,
    }
}

/// The finaliser of SplitMix64.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::all;

    fn errors(seed: u64, count: u64) -> Vec<Planned> {
        let plans: Vec<_> = (0..4).map(|c| Plan::new(seed, c, 4)).collect();
        (0..count)
            .flat_map(|number| plans.iter().map(move |plan| plan.error(number)))
            .collect()
    }

    #[test]
    fn seed_determines_the_errors() {
        assert_eq!(errors(7, 50), errors(7, 50));
        assert_ne!(errors(7, 50), errors(8, 50));
    }

    #[test]
    fn every_kind_has_its_turn() {
        let made: std::collections::BTreeSet<_> =
            errors(1, 75).iter().map(|error| error.kind.name).collect();
        let missing: Vec<_> = all()
            .map(|k| k.name)
            .filter(|n| !made.contains(n))
            .collect();
        assert_eq!(missing, [""; 0]);
    }

    #[test]
    fn without_restarts_no_error_ends_process_or_guest() {
        let plan = Plan::new(1, 0, 1).with_restarts(false);
        assert!((0..2000).all(|number| plan.error(number).kind.ends_nothing()));
    }

    #[test]
    fn memory_is_poisoned_by_default() {
        let poisons = |plan: Plan| {
            (0..2000)
                .any(|number| matches!(plan.error(number).means, Means::Memory(Harm::Poison, _)))
        };
        assert!(poisons(Plan::new(1, 0, 1)));
        assert!(!poisons(Plan::new(1, 0, 1).with_poison(false)));
    }

    #[test]
    fn a_plan_of_some_kinds_has_no_others() {
        let kinds: Vec<_> = all().take(3).collect();
        for only in [&kinds[..1], &kinds] {
            let plan = Plan::new(1, 0, 1).with_only(only);
            let made = |number| plan.error(number).kind;
            assert!((0..200).all(|number| only.contains(&made(number))));
            assert!(only.iter().all(|kind| (0..200).any(|n| made(n) == *kind)));
        }
    }

    #[test]
    fn an_error_is_made_where_its_kind_says() {
        for error in errors(3, 500) {
            if let Means::Arm(arm, _) = error.means {
                assert!(error.kind.points.contains(&arm.point), "{error:?}");
                assert!(arm.count > 0, "{error:?}");
            }
        }
    }
}
