//! The scrubber's thread: checks all sealed pages in turn, at a bounded rate, and the domains of
//! failed requests as soon as they have failed.

use std::collections::VecDeque;
use std::io;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmsrs_protocol::PAGE_SIZE;

use super::NAME;
use crate::engine::{Position, Scope};
use crate::engine_handle::{EngineHandle, Stopping};
use crate::sandbox::{self, Role};

/// How fast sealed pages are checked in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubRate {
    /// Bytes per second. With 0 only pages are checked that the operator asks for.
    pub bytes_per_second: u64,
}

/// Pages checked in a turn. The rest of the time that the rate allows for them is slept.
const TURN: u32 = 64;

/// Minimum time between the starts of two passes, so that a few pages are not checked continuously.
const PASS_MIN: Duration = Duration::from_secs(60);

/// Maximum number of domains whose check is in progress or pending.
const SUSPECTS_MAX: usize = 256;

/// Longest sleep; the scrubber is woken early to check the domains of a failed request, and to end.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// The running thread; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Scrubber {
    handle: EngineHandle,
    thread: Option<JoinHandle<()>>,
}

impl Scrubber {
    pub(super) fn start(handle: EngineHandle, rate: ScrubRate) -> io::Result<Self> {
        let worker = handle.clone();
        let thread = thread::Builder::new()
            .name("vmsrs-scrubber".into())
            .spawn(move || {
                sandbox::confine(Role::Background);
                let Stopping = scrub(&worker, rate);
            })?;
        Ok(Self {
            handle,
            thread: Some(thread),
        })
    }
}

impl Drop for Scrubber {
    fn drop(&mut self) {
        self.handle.stop_background();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("{NAME}: the scrubber's thread panicked");
        }
    }
}

impl ScrubRate {
    /// The time that a number of pages may take.
    fn time(self, pages: u64) -> Duration {
        let bytes = pages.saturating_mul(u64::from(PAGE_SIZE));
        match bytes
            .saturating_mul(1_000_000)
            .checked_div(self.bytes_per_second)
        {
            Some(microseconds) => Duration::from_micros(microseconds).min(PAUSE_MAX),
            None => PAUSE_MAX,
        }
    }
}

/// A domain that is to be checked as a whole because a request in it failed.
#[derive(Debug, PartialEq, Eq)]
struct Suspect {
    scope: Scope,
    /// Where its check continues.
    position: Position,
}

/// The order of turns, which are all the same amount of work. The pass over all pages gets every other
/// turn while it is in progress; suspects share the rest round-robin. So a user who keeps failing in a
/// big domain delays neither the pass nor other users.
#[derive(Debug, Default)]
struct TurnOrder {
    /// Where the pass over all pages continues.
    pass: Position,
    /// At most one entry per domain.
    suspects: VecDeque<Suspect>,
    /// The last turn was a suspect's.
    pass_is_next: bool,
}

/// A turn, to be returned when it is over.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Pass,
    Suspect(Suspect),
}

impl TurnOrder {
    fn add(&mut self, scope: Scope) {
        let full = self.suspects.len() >= SUSPECTS_MAX;
        // The pass reaches later what has no place.
        if !full && self.suspects.iter().all(|known| known.scope != scope) {
            self.suspects.push_back(Suspect {
                scope,
                position: scope.start(),
            });
        }
    }

    /// The next turn, if there is any work; the pass is included if it is `due`.
    fn next(&mut self, due: bool) -> Option<Turn> {
        if due && (self.pass_is_next || self.suspects.is_empty()) {
            self.pass_is_next = false;
            return Some(Turn::Pass);
        }
        self.pass_is_next = true;
        self.suspects.pop_front().map(Turn::Suspect)
    }

    /// Ends a turn; its work continues at `next`. True if that was the end of a pass over all pages.
    fn end(&mut self, turn: Turn, next: Option<Position>) -> bool {
        match (turn, next) {
            (Turn::Pass, next) => {
                self.pass = next.unwrap_or_default();
                return next.is_none();
            }
            (Turn::Suspect(suspect), Some(position)) => self.suspects.push_back(Suspect {
                position,
                ..suspect
            }),
            (Turn::Suspect(_), None) => {}
        }
        false
    }
}

fn scrub(handle: &EngineHandle, rate: ScrubRate) -> Stopping {
    let mut order = TurnOrder::default();
    let mut pass = Instant::now();
    // `due` is when the pass continues, `free` the earliest start of any turn.
    let mut due = pass + PASS_MIN;
    let mut free = pass;
    loop {
        let wake = match order.suspects.is_empty() {
            true => due.max(free),
            false => free,
        };
        match handle.wait_for_suspect(wake.saturating_duration_since(Instant::now())) {
            Err(stopping) => return stopping,
            Ok(Some(_)) if rate.bytes_per_second == 0 => continue,
            Ok(Some(scope)) => {
                order.add(scope);
                continue;
            }
            Ok(None) => {}
        }
        let now = Instant::now();
        if now < wake {
            continue;
        }
        if rate.bytes_per_second == 0 {
            due = now + PAUSE_MAX;
            continue;
        }
        let Some(turn) = order.next(now >= due) else {
            continue;
        };
        let (scope, position) = match &turn {
            Turn::Pass => (Scope::default(), order.pass),
            Turn::Suspect(suspect) => (suspect.scope, suspect.position),
        };
        let done = handle.scrub(scope, position, TURN);
        free = now + rate.time(done.looked);
        if order.end(turn, done.next) {
            due = free.max(pass + PASS_MIN);
            pass = due;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_says_how_long_pages_take() {
        let rate = ScrubRate {
            bytes_per_second: 16 << 20,
        };
        assert_eq!(rate.time(4096), Duration::from_secs(1));
        assert_eq!(rate.time(0), Duration::ZERO);
        assert_eq!(rate.time(u64::MAX), PAUSE_MAX);
        let none = ScrubRate {
            bytes_per_second: 0,
        };
        assert_eq!(none.time(1), PAUSE_MAX);
    }

    fn domain(number: u32) -> Scope {
        Scope {
            app: Some(0),
            domain: Some(number),
        }
    }

    #[test]
    fn repeated_failures_get_no_extra_turns() {
        let mut order = TurnOrder::default();
        let (mut passes, mut turns) = (0, [0; 3]);
        for number in 0..3 {
            order.add(domain(number));
        }
        for _ in 0..600 {
            // Domain 0 has no end, and fails before every turn; the others are checked again too.
            order.add(domain(0));
            let turn = order.next(true).unwrap();
            let mut next = Some(Position {
                page: 1,
                ..Position::default()
            });
            match &turn {
                Turn::Pass => passes += 1,
                Turn::Suspect(suspect) => {
                    let number = suspect.scope.domain.unwrap() as usize;
                    turns[number] += 1;
                    if number != 0 {
                        next = None;
                    }
                }
            }
            order.end(turn, next);
            for number in 1..3 {
                order.add(domain(number));
            }
        }
        assert_eq!(passes, 300, "the pass has every other turn");
        assert_eq!(turns, [100; 3], "the rest is shared");
    }
}
