//! The results of a run.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmsrs_ledger::users::lock;
use vmsrs_report::distribution::Distribution;

use crate::cause::Cause;
use crate::class::Class;
use crate::console::Console;
use crate::kind::{Fate, Kind, all, turns};
use crate::options::Options;
use crate::world::{Ended, World};

/// The counts of one kind of error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindOutcome {
    /// Its name.
    pub kind: String,
    /// Errors that were made: the sum of the classes.
    pub injected: u64,
    /// Answered right: the error was stopped or repaired.
    pub recovered_right: u64,
    /// Answered, with wrong data for the request's own user alone.
    pub recovered_wrong_answer: u64,
    /// Only the request was lost.
    pub request_lost: u64,
    /// Answered right: the error made no difference.
    pub no_effect: u64,
    /// The process or the guest ended as expected of the kind; every committed state was intact.
    pub restarted: u64,
    /// Others were affected.
    pub others_harmed: u64,
    /// The process or the guest ended, and must not.
    pub crash: u64,
    /// No answer.
    pub hang: u64,
    /// What detected it, with counts.
    pub detected_by: BTreeMap<String, u64>,
}

impl KindOutcome {
    /// Errors that must be detected and were not: the request was answered.
    #[must_use]
    pub fn undetected(&self) -> u64 {
        let Some(kind) = all().find(|kind| kind.name == self.kind) else {
            return 0;
        };
        match kind.fate {
            // Whether it is detected depends on the CPU.
            _ if kind.depends_on_keys() => 0,
            Fate::Detected | Fate::Kills | Fate::Panics => {
                self.recovered_wrong_answer + self.no_effect
            }
            Fate::Harmless => self.recovered_wrong_answer,
            Fate::OwnDamage | Fate::Untagged => 0,
        }
    }
}

fn kinds_by_name<'a>(outcomes: &'a [KindOutcome], name: &str) -> Option<&'a KindOutcome> {
    outcomes.iter().find(|outcome| outcome.kind == name)
}

/// Times without a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// How often.
    pub count: u64,
    /// The median, in milliseconds.
    pub median_ms: u64,
    /// The longest, in milliseconds.
    pub max_ms: u64,
}

/// The results of errors outside of domains: how large the unprotected surface is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untagged {
    /// Errors that were made.
    pub aimed: u64,
    /// Of these, those that ended the process.
    pub killed: u64,
    /// Of these, those that were caught: the request alone was lost.
    pub caught: u64,
    /// Of these, those that had no effect at once, or only for their own user.
    pub unnoticed: u64,
    /// Processes that survived, and were replaced by the supervisor to be safe.
    pub replaced: u64,
    /// Outages of the processes that the error ended.
    pub outage: Outage,
}

impl Outage {
    fn new(outages: impl IntoIterator<Item = Duration>) -> Self {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let outages: Distribution = outages.into_iter().map(milliseconds).collect();
        Self {
            count: outages.count(),
            median_ms: outages.median().unwrap_or(0),
            max_ms: outages.percentile(100).unwrap_or(0),
        }
    }
}

/// The result of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Errors that were to be made.
    pub errors_planned: u64,
    /// Errors that were made.
    pub errors_injected: u64,
    /// Errors that must be detected and were not: the request was answered.
    pub undetected: u64,
    /// Kinds that the plan has often and that were never made.
    pub kinds_never_made: Vec<String>,
    /// Unexpected complaints of the guest's kernel on its console.
    pub kernel_complaints: u64,
    /// The first of them, with the lines that follow.
    pub kernel_complaints_quoted: Vec<String>,
    /// Per kind.
    pub kinds: Vec<KindOutcome>,
    /// Requests and states of others with wrong results.
    pub others_harmed: u64,
    /// Ends of the process or the guest that no kind explains.
    pub crashes: u64,
    /// Requests without an answer.
    pub hangs: u64,
    /// Acknowledged commits that a restart lost.
    pub commits_lost: u64,
    /// Starts of the server's process after the first.
    pub server_restarts: u64,
    /// Of these, those caused by errors outside of domains. Processes that the supervisor has ended because of such an
    /// error are in `untagged.replaced`.
    pub untagged_deaths: u64,
    /// The results of errors outside of domains.
    pub untagged: Untagged,
    /// Restarts that do not match an end of the server, and ends without a restart.
    pub restarts_unexplained: u64,
    /// Restarts of the guest that errors have caused, and whose panics are on the console.
    pub guest_restarts_planned: u64,
    /// Boots of the guest that ended before the driver was loaded.
    pub guest_boots_cut_short: u64,
    /// Requests sent.
    pub requests: u64,
    /// Planned errors whose point the request did not pass.
    pub not_reached: u64,
    /// Planned errors in requests that another error's restart cut off.
    pub cut_off: u64,
    /// Requests that failed in a process with damaged memory outside of domains, before it ended.
    pub lost_in_damaged_process: u64,
    /// The largest number of errors in flight at once.
    pub most_errors_in_flight: u64,
    /// Bytes of users' state that were compared.
    pub bytes_compared: u64,
    /// Failed requests that clients were told of.
    pub failures_answered: u64,
    /// Failed requests that the host counts.
    pub incidents_reported: u64,
    /// Of these, those without a failed request, and answers without an incident.
    pub incidents_unexplained: u64,
    /// How often the directory was compared.
    pub directories_compared: u64,
    /// Users with wrong data from their own requests, taken out of use.
    pub users_retired: u64,
    /// Time without the server's process.
    pub outage_server: Outage,
    /// Time without the guest.
    pub outage_guest: Outage,
    /// Seconds from the first request to the last.
    pub seconds: f64,
    /// The first differences, in words.
    pub complaints: Vec<String>,
    /// Incidents of requests without an error.
    pub incidents: Vec<u64>,
    /// The last requests and answers, if a promise was broken.
    pub trace: Vec<String>,
}

/// A kind with this many turns must have been made.
const MANY_TURNS: u64 = 10;

/// Kinds that a plan of this many errors has often and that were never made, with up to `requests` in flight.
fn never_made(outcomes: &[KindOutcome], errors: u64, requests: usize) -> Vec<String> {
    let is_often =
        |kind: &Kind| turns(kind, errors) >= MANY_TURNS && (requests > 1 || !kind.needs_company());
    let never = outcomes.iter().filter(|outcome| outcome.injected == 0);
    never
        .filter(|outcome| all().any(|kind| kind.name == outcome.kind && is_often(kind)))
        .map(|outcome| outcome.kind.clone())
        .collect()
}

/// Whether the plan of a run has a kind.
fn is_planned(kind: &'static Kind, options: &Options) -> bool {
    let may_end = options.restarts || kind.ends_nothing();
    let wanted = options.only.is_empty() || options.only.contains(&kind);
    wanted && may_end && options.tools().missing(kind).is_none()
}

/// Errors in memory that protection keys close that were not stopped, if the guest's CPU has `keys`, with up to
/// `requests` in flight.
fn unguarded(outcomes: &[KindOutcome], keys: bool, requests: usize) -> u64 {
    let guarded = all().filter(|kind| keys && kind.is_guarded(requests));
    guarded
        .filter_map(|kind| kinds_by_name(outcomes, kind.name))
        .map(|outcome| outcome.injected - outcome.request_lost)
        .sum()
}

impl Outcome {
    /// Combines the run's records, why each life of the server `ended`, and the guest's console.
    pub(crate) fn new(
        world: &World<'_>,
        ended: &[Ended],
        console: Option<&Console>,
        seconds: f64,
    ) -> Self {
        let tally = lock(&world.tally);
        let detectors = lock(&world.detectors);
        let outages = |wanted: &dyn Fn(&Ended) -> bool| {
            let wanted = ended.iter().filter(|end| wanted(end));
            Outage::new(wanted.filter_map(|end| end.outage))
        };
        let causes = |cause: &Cause| ended.iter().filter(|end| end.cause == *cause).count() as u64;
        let none = BTreeMap::new();
        let outcomes: Vec<_> = all()
            .filter(|kind| tally.contains_key(kind.name) || is_planned(kind, world.options))
            .map(|kind| {
                let classes = tally.get(kind.name).unwrap_or(&none);
                let number = |class| classes.get(&class).copied().unwrap_or(0);
                KindOutcome {
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
                }
            })
            .collect();
        let of_fate = |fate| {
            let kinds = all().filter(move |kind| kind.fate == fate);
            kinds.filter_map(|kind| kinds_by_name(&outcomes, kind.name))
        };
        let untagged = Untagged {
            aimed: of_fate(Fate::Untagged).map(|kind| kind.injected).sum(),
            killed: causes(&Cause::Untagged),
            caught: of_fate(Fate::Untagged).map(|kind| kind.request_lost).sum(),
            unnoticed: of_fate(Fate::Untagged)
                .map(|kind| kind.no_effect + kind.recovered_right + kind.recovered_wrong_answer)
                .sum(),
            replaced: causes(&Cause::Replaced),
            outage: outages(&|end| end.cause == Cause::Untagged),
        };
        let count = &world.count;
        let mut outcome = Self {
            errors_planned: world.options.errors,
            errors_injected: count.injected.load(SeqCst),
            undetected: outcomes.iter().map(KindOutcome::undetected).sum::<u64>()
                + unguarded(&outcomes, world.options.keys, world.options.connections),
            kinds_never_made: match *world.options.only {
                [] => never_made(&outcomes, world.options.errors, world.options.connections),
                _ => Vec::new(),
            },
            kernel_complaints: console.map_or(0, |console| console.complaints),
            kernel_complaints_quoted: console
                .map_or_else(Vec::new, |console| console.quoted.clone()),
            kinds: outcomes,
            others_harmed: count.harmed.load(SeqCst),
            crashes: count.crashes.load(SeqCst),
            hangs: count.hangs.load(SeqCst),
            commits_lost: count.commits_lost.load(SeqCst),
            server_restarts: ended.len() as u64,
            untagged_deaths: untagged.killed,
            untagged,
            restarts_unexplained: count.restarts_unexplained.load(SeqCst),
            guest_restarts_planned: console.map_or(causes(&Cause::Panic), |console| {
                causes(&Cause::Panic).min(console.panics)
            }),
            guest_boots_cut_short: console.map_or(0, |console| console.boots_cut_short),
            requests: count.requests.load(SeqCst),
            not_reached: count.not_reached.load(SeqCst),
            cut_off: count.cut_off.load(SeqCst),
            lost_in_damaged_process: count.lost_in_damaged.load(SeqCst),
            most_errors_in_flight: count.most_errors_in_flight.load(SeqCst),
            bytes_compared: count.bytes_compared.load(SeqCst),
            failures_answered: lock(&world.failures).number(),
            incidents_reported: count.incidents_reported.load(SeqCst),
            incidents_unexplained: count.incidents_unexplained.load(SeqCst),
            directories_compared: count.directories_compared.load(SeqCst),
            users_retired: lock(&world.retired).len() as u64,
            outage_server: outages(&|end| end.same_boot),
            outage_guest: outages(&|end| !end.same_boot),
            seconds,
            complaints: lock(&world.complaints).clone(),
            incidents: lock(&world.incidents).clone(),
            trace: Vec::new(),
        };
        if !outcome.broken_promises().is_empty() {
            outcome.trace = world.first_traced();
            if outcome.trace.is_empty() {
                outcome.trace = world.traced();
            }
        }
        outcome
    }

    /// The broken promises; empty if all were kept.
    #[must_use]
    pub fn broken_promises(&self) -> Vec<String> {
        [
            (self.others_harmed, "others were harmed"),
            (
                self.errors_planned.saturating_sub(self.errors_injected),
                "errors of the plan were not made: the run was abandoned",
            ),
            (self.undetected, "errors that must be detected were not"),
            (
                self.kinds_never_made.len() as u64,
                "kinds of errors were never made",
            ),
            (
                self.kernel_complaints,
                "complaints of the guest's kernel on its console",
            ),
            (self.crashes, "crashes"),
            (
                self.restarts_unexplained,
                "restarts that do not match the ends of the server",
            ),
            (self.hangs, "hangs"),
            (
                self.incidents_unexplained,
                "incidents of the host that do not match the failures in answers",
            ),
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
    use crate::kind::REQUESTS_WITH_OWN_KEYS;

    #[test]
    fn each_broken_promise_is_told() {
        assert!(Outcome::default().broken_promises().is_empty());
        let outcome = Outcome {
            errors_planned: 10,
            errors_injected: 9,
            undetected: 1,
            kinds_never_made: vec!["null write".to_owned()],
            kernel_complaints: 1,
            others_harmed: 1,
            crashes: 1,
            restarts_unexplained: 1,
            incidents_unexplained: 1,
            hangs: 1,
            commits_lost: 1,
            ..Outcome::default()
        };
        assert_eq!(outcome.broken_promises().len(), 10);
    }

    #[test]
    fn unstopped_error_in_guarded_memory_counts_with_keys() {
        let outcome = KindOutcome {
            kind: "untagged: the server's variables".to_owned(),
            injected: 5,
            request_lost: 3,
            restarted: 2,
            ..KindOutcome::default()
        };
        let (few, many) = (REQUESTS_WITH_OWN_KEYS, REQUESTS_WITH_OWN_KEYS + 1);
        assert_eq!(unguarded(std::slice::from_ref(&outcome), true, few), 2);
        assert_eq!(unguarded(std::slice::from_ref(&outcome), false, few), 0);
        assert_eq!(unguarded(&[outcome], true, many), 2);
        let draft = KindOutcome {
            kind: "write to another request's draft".to_owned(),
            injected: 2,
            no_effect: 1,
            request_lost: 1,
            ..KindOutcome::default()
        };
        assert_eq!(draft.undetected(), 0);
        assert_eq!(unguarded(std::slice::from_ref(&draft), true, few), 1);
        // Some share a key.
        assert_eq!(unguarded(&[draft], true, many), 0);
    }

    #[test]
    fn kind_with_many_turns_that_was_never_made_is_reported() {
        let outcome = |kind: &str, injected| KindOutcome {
            kind: kind.to_owned(),
            injected,
            ..KindOutcome::default()
        };
        let outcomes = [
            outcome("null write", 0),
            outcome("division by zero", 3),
            outcome("panic of the guest's kernel", 0),
        ];
        assert_eq!(never_made(&outcomes, 10_000, 14), ["null write"]);
        assert_eq!(never_made(&outcomes, 300, 14), [""; 0]);
        // It needs two requests.
        let draft = [outcome("write to another request's draft", 0)];
        assert_eq!(never_made(&draft, 10_000, 1), [""; 0]);
        assert_eq!(never_made(&draft, 10_000, 2).len(), 1);
    }

    #[test]
    fn answered_error_that_must_be_detected_is_undetected() {
        let outcome = |kind: &str| KindOutcome {
            kind: kind.to_owned(),
            recovered_wrong_answer: 1,
            no_effect: 2,
            ..KindOutcome::default()
        };
        assert_eq!(outcome("null write").undetected(), 3);
        assert_eq!(outcome("kill -9 of the server").undetected(), 3);
        // If the other thread is late, the error was not made at all.
        let member = outcome("error in another thread of the request");
        assert_eq!(member.undetected(), 3);
        assert_eq!(outcome("mutation: copy too short").undetected(), 0);
        assert_eq!(outcome("untagged: C heap").undetected(), 0);
    }

    #[test]
    fn an_outage_has_a_median_and_a_longest() {
        let outage = Outage::new([5, 1, 9].map(Duration::from_millis));
        assert_eq!((outage.count, outage.median_ms, outage.max_ms), (3, 5, 9));
        assert_eq!(Outage::new([]), Outage::default());
    }
}
