//! The next request, drawn by seed.

use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::bug::Bug;
use crate::command::Command;
use crate::model::User;

/// By default one request in this many is fatal.
pub const FATAL_ONE_IN: usize = 20;

/// The smallest group of requests of which one can be fatal.
pub const SMALLEST_GROUP: usize = SPARE + 1;

/// Slots at the end of each group that are never drawn for the fatal request: one that needs preparation comes later
/// and must still be in its group.
const SPARE: usize = 3;

const MOST_NOTES: usize = 5;
const LONGEST_TEXT: usize = 200;

/// The requests of one connection.
#[derive(Debug)]
pub struct Plan {
    rng: SmallRng,
    /// Number of requests of which one is fatal.
    group: usize,
    group_slot: usize,
    fatal_slot: usize,
    fatal_done: bool,
    next_kind: usize,
}

/// A request to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What to send.
    pub command: Command,
    /// The bug that it reaches, if it is fatal.
    pub fatal: Option<Bug>,
}

impl Plan {
    /// The plan of connection number `connection`. Fatal requests cycle through all bugs, starting at a different one on
    /// each connection.
    pub fn new(seed: u64, connection: usize) -> Self {
        Self::with_groups_of(FATAL_ONE_IN, seed, connection)
    }

    /// The same with one fatal request in each `group`; at least [`SMALLEST_GROUP`].
    pub fn with_groups_of(group: usize, seed: u64, connection: usize) -> Self {
        let mut plan = Self {
            group: group.max(SMALLEST_GROUP),
            rng: SmallRng::seed_from_u64(
                seed ^ (connection as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            ),
            group_slot: 0,
            fatal_slot: 0,
            fatal_done: false,
            next_kind: connection % Bug::ALL.len(),
        };
        plan.fatal_slot = plan.draw_fatal_slot();
        plan
    }

    /// The user (of `count`) of the next request, given that of the last one.
    pub fn choose_user(&mut self, current: usize, count: usize) -> usize {
        match self.rng.random_ratio(1, 4) {
            true => self.rng.random_range(0..count),
            false => current,
        }
    }

    /// The next request of `user`; `others` are the users that money may go to.
    pub fn next(&mut self, user: &User, others: &[(usize, String)], faults: bool) -> Step {
        let due = self.fatal_is_due(faults);
        self.group_slot += 1;
        let kind = Bug::ALL[self.next_kind];
        let step = match due.then(|| kind.preparation(user)) {
            Some(None) => {
                self.fatal_done = true;
                self.next_kind = (self.next_kind + 1) % Bug::ALL.len();
                Step {
                    command: kind.request(user, &mut self.rng),
                    fatal: Some(kind),
                }
            }
            Some(Some(command)) => Step {
                command,
                fatal: None,
            },
            None => Step {
                command: self.ordinary(user, others),
                fatal: None,
            },
        };
        self.end_slot();
        step
    }

    /// Counts a request that did not come from [`Plan::next`].
    pub fn skip(&mut self) {
        self.group_slot += 1;
        self.end_slot();
    }

    fn end_slot(&mut self) {
        if self.group_slot == self.group {
            self.group_slot = 0;
            self.fatal_done = false;
            self.fatal_slot = self.draw_fatal_slot();
        }
    }

    /// Whether the fatal request of this group is due. The user should not be changed then: that costs a request.
    pub fn fatal_is_due(&self, faults: bool) -> bool {
        faults && self.group_slot >= self.fatal_slot && !self.fatal_done
    }

    fn draw_fatal_slot(&mut self) -> usize {
        self.rng.random_range(0..self.group - SPARE)
    }

    fn ordinary(&mut self, user: &User, others: &[(usize, String)]) -> Command {
        let rng = &mut self.rng;
        if user.balance < 100 {
            return Command::Deposit(rng.random_range(200..2000));
        }
        let note = user.notes.iter().choose(rng);
        match (rng.random_range(0..20), note) {
            (0 | 1, _) => Command::Deposit(rng.random_range(1..500)),
            (2 | 3, _) => Command::Withdraw(rng.random_range(1..400)),
            (4 | 5, _) => match others.choose(rng) {
                Some((receiver, name)) => Command::Transfer {
                    receiver: *receiver,
                    name: name.clone(),
                    amount: rng.random_range(1..100),
                },
                None => Command::NoteList,
            },
            (6, _) => Command::Tax(rng.random_range(0..30)),
            (7, _) => Command::Label(rng.random_range(0..4), rng.random_range(-1000..1000)),
            (8, _) => Command::Calc(expression(rng, 6)),
            (9, _) => Command::Directory,
            (10, _) => Command::NoteList,
            (11 | 12, _) => Command::Read,
            (13, Some(note)) => Command::NoteEdit(note.id, text(rng)),
            (14, Some(note)) => Command::NotePad(note.id, rng.random_range(1..LONGEST_TEXT as u32)),
            (15, Some(note)) if !note.text.contains('"') => Command::NoteQuote(note.id),
            (16, Some(note)) => Command::NoteAverage(note.text.chars().take(2).collect()),
            (17, Some(note)) => {
                let small = |other: &&crate::model::Note| {
                    other.id != note.id && other.text.len() + note.text.len() < LONGEST_TEXT
                };
                match user.notes.iter().filter(small).choose(rng) {
                    Some(other) => Command::NoteJoin(note.id, other.id),
                    None => Command::NoteDelete(vec![note.id]),
                }
            }
            (_, Some(note)) if user.notes.len() >= MOST_NOTES => Command::NoteDelete(vec![note.id]),
            _ => Command::NoteAdd(text(rng)),
        }
    }
}

fn text(rng: &mut impl Rng) -> String {
    const WORDS: [&str; 12] = [
        "bread",
        "milk",
        "call",
        "the",
        "plumber",
        "on",
        "Monday",
        "\"urgent\"",
        "pay",
        "rent",
        "tickets",
        "and",
    ];
    let count = rng.random_range(1..12);
    let words: Vec<&str> = (0..count)
        .map(|_| WORDS[rng.random_range(0..WORDS.len())])
        .collect();
    words.join(" ")
}

fn expression(rng: &mut SmallRng, depth: u32) -> String {
    let left = match depth.saturating_sub(rng.random_range(1..=3)) {
        0 => rng.random_range(0..1000).to_string(),
        inner => format!("({})", expression(rng, inner)),
    };
    let right = rng.random_range(0..1000);
    let operator = ['+', '-', '*'][rng.random_range(0..3)];
    format!("{left}{operator}{right}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plans `count` requests and applies the ordinary ones to a model.
    fn steps(seed: u64, connection: usize, count: usize) -> Vec<Step> {
        steps_of(Plan::new(seed, connection), count)
    }

    fn steps_of(mut plan: Plan, count: usize) -> Vec<Step> {
        let (mut user, mut other) = (User::new("a"), User::new("b"));
        let others = [(1, "b".to_owned())];
        (0..count)
            .map(|_| {
                let step = plan.next(&user, &others, true);
                if step.fatal.is_none() {
                    user.apply(&step.command, Some(&mut other));
                }
                step
            })
            .collect()
    }

    #[test]
    fn exactly_one_request_of_each_group_is_fatal() {
        for connection in 0..16 {
            for group in steps(7, connection, 600).chunks(FATAL_ONE_IN) {
                assert_eq!(group.iter().filter(|step| step.fatal.is_some()).count(), 1);
            }
        }
    }

    #[test]
    fn the_share_of_fatal_requests_can_be_chosen() {
        for group in [SMALLEST_GROUP, 10, 50] {
            let plan = Plan::with_groups_of(group, 7, 1);
            for steps in steps_of(plan, 20 * group).chunks(group) {
                assert_eq!(steps.iter().filter(|step| step.fatal.is_some()).count(), 1);
            }
        }
    }

    #[test]
    fn bugs_take_turns() {
        let kinds: std::collections::BTreeSet<Bug> = steps(7, 3, FATAL_ONE_IN * Bug::ALL.len())
            .into_iter()
            .filter_map(|step| step.fatal)
            .collect();
        assert_eq!(kinds.len(), Bug::ALL.len());
    }

    #[test]
    fn seed_determines_the_requests() {
        assert_eq!(steps(5, 2, 300), steps(5, 2, 300));
        assert_ne!(steps(5, 2, 300), steps(6, 2, 300));
    }

    #[test]
    fn without_faults_all_requests_are_ordinary() {
        let mut plan = Plan::new(1, 0);
        let mut user = User::new("a");
        for _ in 0..1000 {
            let step = plan.next(&user, &[], false);
            assert_eq!(step.fatal, None);
            user.apply(&step.command, None);
        }
    }
}
