//! What a run found.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::class::Class;
use crate::kind::all;
use crate::run::restarts;
use crate::world::{World, lock};

/// The numbers of one kind of error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindOutcome {
    /// Its name.
    pub kind: String,
    /// Errors that were made.
    pub injected: u64,
    /// Answered right: the error was stopped or repaired.
    pub recovered_right: u64,
    /// Answered, with wrong data for the request's own user alone.
    pub recovered_wrong_answer: u64,
    /// Only the request was lost.
    pub request_lost: u64,
    /// Answered right: the changed code made no difference.
    pub no_effect: u64,
    /// The process or the guest ended as the kind has it; every committed state was whole.
    pub restarted: u64,
    /// Others were hit.
    pub others_harmed: u64,
    /// The process or the guest ended, and should not have.
    pub crash: u64,
    /// No answer.
    pub hang: u64,
    /// What noticed it, how often.
    pub detected_by: BTreeMap<String, u64>,
}

/// The time without a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// How often.
    pub count: u64,
    /// The median, in milliseconds.
    pub median_ms: u64,
    /// The longest, in milliseconds.
    pub max_ms: u64,
}

impl Outage {
    fn new(mut outages: Vec<Duration>) -> Self {
        outages.sort_unstable();
        let milliseconds = |time: Option<&Duration>| {
            time.map_or(0, |time| {
                u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
            })
        };
        Self {
            count: outages.len() as u64,
            median_ms: milliseconds(outages.get(outages.len() / 2)),
            max_ms: milliseconds(outages.last()),
        }
    }
}

/// The result of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Errors that were made.
    pub errors_injected: u64,
    /// Per kind.
    pub kinds: Vec<KindOutcome>,
    /// Requests and states of others that were not as they must be.
    pub others_harmed: u64,
    /// Ends of the process or the guest that no kind explains.
    pub crashes: u64,
    /// Requests without an answer.
    pub hangs: u64,
    /// Commits that were answered and not there after a restart.
    pub commits_lost: u64,
    /// Starts of the server's process after the first.
    pub server_restarts: u64,
    /// Of these, those by errors that landed outside of domains.
    pub untagged_deaths: u64,
    /// Restarts of the guest that errors have asked for.
    pub guest_restarts_planned: u64,
    /// Requests sent.
    pub requests: u64,
    /// Errors planned whose point the request did not pass.
    pub not_reached: u64,
    /// Errors planned in requests that another error's restart cut off.
    pub cut_off: u64,
    /// Requests that failed in a process whose untagged memory had been damaged, before it ended.
    pub lost_in_damaged_process: u64,
    /// Most errors under way at once.
    pub most_errors_in_flight: u64,
    /// Bytes of users' state that were compared.
    pub bytes_compared: u64,
    /// Users with wrong data of their own making, taken out of use.
    pub users_retired: u64,
    /// Time without the server's process.
    pub outage_server: Outage,
    /// Time without the guest.
    pub outage_guest: Outage,
    /// Seconds from the first request to the last.
    pub seconds: f64,
    /// The first things that were not as they must be, in words.
    pub complaints: Vec<String>,
    /// Incidents of requests that nobody made an error in.
    pub incidents: Vec<u64>,
    /// The last requests and answers, if something was not as it must be.
    pub trace: Vec<String>,
}

impl Outcome {
    pub(crate) fn new(world: &World<'_>, seconds: f64) -> Self {
        let tally = lock(&world.tally);
        let detectors = lock(&world.detectors);
        let (server_restarts, untagged_deaths, guest_restarts_planned) = restarts(world);
        let (servers, guests) = world.outages();
        let kinds: Vec<_> = all()
            .filter_map(|kind| {
                let classes = tally.get(kind.name)?;
                let number = |class| classes.get(&class).copied().unwrap_or(0);
                Some(KindOutcome {
                    kind: kind.name.to_owned(),
                    injected: classes.values().sum(),
                    recovered_right: number(Class::RecoveredRight),
                    recovered_wrong_answer: number(Class::RecoveredWrongAnswer),
                    request_lost: number(Class::RequestLost),
                    no_effect: number(Class::NoEffect),
                    restarted: number(Class::Restarted),
                    others_harmed: number(Class::OthersHarmed),
                    crash: number(Class::Crash),
                    hang: number(Class::Hang),
                    detected_by: detectors.get(kind.name).cloned().unwrap_or_default(),
                })
            })
            .collect();
        let crashes = tally
            .values()
            .filter_map(|classes| classes.get(&Class::Crash))
            .sum();
        let count = &world.count;
        let mut outcome = Self {
            errors_injected: count.injected.load(SeqCst),
            kinds,
            others_harmed: count.harmed.load(SeqCst),
            crashes,
            hangs: count.hangs.load(SeqCst),
            commits_lost: count.commits_lost.load(SeqCst),
            server_restarts,
            untagged_deaths,
            guest_restarts_planned,
            requests: count.requests.load(SeqCst),
            not_reached: count.not_reached.load(SeqCst),
            cut_off: count.cut_off.load(SeqCst),
            lost_in_damaged_process: count.lost_in_damaged.load(SeqCst),
            most_errors_in_flight: count.most_errors_in_flight.load(SeqCst),
            bytes_compared: count.bytes_compared.load(SeqCst),
            users_retired: lock(&world.retired).len() as u64,
            outage_server: Outage::new(servers),
            outage_guest: Outage::new(guests),
            seconds,
            complaints: lock(&world.complaints).clone(),
            incidents: lock(&world.incidents).clone(),
            trace: Vec::new(),
        };
        if !outcome.broken_promises().is_empty() {
            outcome.trace = world.traced();
        }
        outcome
    }

    /// What was not as promised.
    #[must_use]
    pub fn broken_promises(&self) -> Vec<String> {
        [
            (self.others_harmed, "others were harmed"),
            (self.crashes, "crashes"),
            (self.hangs, "hangs"),
            (self.commits_lost, "commits were lost"),
        ]
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_broken_promise_is_told() {
        assert!(Outcome::default().broken_promises().is_empty());
        let outcome = Outcome {
            others_harmed: 1,
            crashes: 1,
            hangs: 1,
            commits_lost: 1,
            ..Outcome::default()
        };
        assert_eq!(outcome.broken_promises().len(), 4);
    }

    #[test]
    fn an_outage_has_a_median_and_a_longest() {
        let outage = Outage::new([5, 1, 9].map(Duration::from_millis).to_vec());
        assert_eq!((outage.count, outage.median_ms, outage.max_ms), (3, 5, 9));
        assert_eq!(Outage::new(Vec::new()), Outage::default());
    }
}
