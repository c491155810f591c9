//! The scrubber's thread: checks all sealed pages in turn, at a bounded rate, and the domains of
//! failed requests as soon as they have failed.

use std::io;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmsrs_protocol::PAGE_SIZE;

use super::NAME;
use super::handle::{RecoveryHandle, Stopping};
use crate::engine::{Position, Scope};

/// How fast sealed pages are checked in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubRate {
    /// Bytes a second; 0 for no checks but those of pages that failed requests go back to, and of the
    /// operator.
    pub bytes_per_second: u64,
}

/// Pages checked at a time; the rest of the time that they may take is slept.
const TURN: u32 = 64;

/// A pass over all sealed pages begins no earlier than this after the one before: a few pages are not
/// checked over and over again.
const PASS_MIN: Duration = Duration::from_secs(60);

/// Longest sleep; the scrubber is woken early to check the domains of a failed request, and to end.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// The running thread; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Scrubber {
    handle: RecoveryHandle,
    thread: Option<JoinHandle<()>>,
}

impl Scrubber {
    pub(super) fn start(handle: RecoveryHandle, rate: ScrubRate) -> io::Result<Self> {
        let worker = handle.clone();
        let thread = thread::Builder::new()
            .name("vmsrs-scrubber".into())
            .spawn(move || {
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

fn scrub(handle: &RecoveryHandle, rate: ScrubRate) -> Stopping {
    let mut position = Position::default();
    let mut pass = Instant::now();
    let mut due = pass + PASS_MIN;
    loop {
        let pause = due.saturating_duration_since(Instant::now());
        let result = match handle.wait_for_suspect(pause) {
            Ok(_) if rate.bytes_per_second == 0 => Ok(()),
            Ok(Some(scope)) => scrub_domain(handle, rate, scope),
            Ok(None) => Ok(()),
            Err(stopping) => Err(stopping),
        };
        if let Err(stopping) = result {
            return stopping;
        }
        let now = Instant::now();
        if now < due {
            continue;
        }
        if rate.bytes_per_second == 0 {
            due = now + PAUSE_MAX;
            continue;
        }
        let (counts, next) = handle.scrub(Scope::default(), position, TURN);
        due = now + rate.time(counts.checked);
        position = next.unwrap_or_default();
        if next.is_none() {
            due = due.max(pass + PASS_MIN);
            pass = due;
        }
    }
}

/// Checks a domain as a whole, at the same rate.
fn scrub_domain(handle: &RecoveryHandle, rate: ScrubRate, scope: Scope) -> Result<(), Stopping> {
    let mut next = Some(scope.start());
    while let Some(position) = next {
        let (counts, rest) = handle.scrub(scope, position, TURN);
        next = rest;
        handle.wait_for_end(rate.time(counts.checked))?;
    }
    Ok(())
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
}
