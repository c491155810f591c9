//! Random requests of many threads and users, some of which fail: every domain holds exactly what its committed
//! requests wrote.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use vmsrs::{App, Domain, Error, Options, Request, RunError};

use crate::fault::wild_write;
use crate::limits::patient;
use crate::random::Random;
use crate::{Behaviour, Machine};

const THREADS: u64 = 8;
const REQUESTS: u64 = 150;
const USERS: u64 = 24;
const SHARED: u64 = 3;
const SEED: u64 = 0x0005_eed0_fa11;

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "domains_match_model_after_concurrent_failures",
    machine: Machine::Usual,
    steps: &[("threads", threads)],
    host: |guest| guest.run_steps(&["threads"]),
};

/// What a domain holds: the number of its changes, and a checksum over them in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
struct State {
    changes: u64,
    sum: u64,
}

impl State {
    fn changed(self, value: u64) -> Self {
        Self {
            changes: self.changes + 1,
            sum: self.sum.wrapping_mul(0x0100_0000_01b3).wrapping_add(value),
        }
    }
}

/// A committed change of a domain, and what the domain held afterwards.
#[derive(Clone, Copy, Debug)]
struct Change {
    domain: u32,
    value: u64,
    after: State,
}

/// How a request ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Commit,
    GiveUp,
    WildWrite,
    Abort,
    Invariant,
}

/// What a request does.
#[derive(Clone, Copy, Debug)]
struct Plan {
    user: u64,
    /// A second user, above the first, since locks are taken in ascending order.
    second: Option<u64>,
    /// A shared domain, and whether it is held until the end.
    shared: Option<(u64, bool)>,
    value: u64,
    /// Commit and wait for the seal, then change the user's domain again.
    midway: bool,
    seal: bool,
    end: End,
}

impl Plan {
    fn new(random: &mut Random) -> Self {
        let user = random.below(USERS);
        let above = USERS - user - 1;
        Self {
            user,
            second: (above > 0 && random.below(3) == 0).then(|| user + 1 + random.below(above)),
            shared: (random.below(3) == 0).then(|| (random.below(SHARED), random.below(2) == 0)),
            value: random.below(u64::MAX),
            midway: random.below(12) == 0,
            seal: random.below(12) == 0,
            end: match random.below(10) {
                0 => End::GiveUp,
                1 => End::WildWrite,
                2 => End::Abort,
                3 => End::Invariant,
                _ => End::Commit,
            },
        }
    }
}

/// Changes a domain that the request holds.
fn change(domain: &'static Domain, value: u64) -> Change {
    let cell = domain.root_address().cast::<State>();
    // SAFETY: the domain is held, and its root leads to its state.
    let after = unsafe {
        *cell = (*cell).changed(value);
        *cell
    };
    Change {
        domain: domain.number(),
        value,
        after,
    }
}

/// Runs one request, and appends its changes to `log` when they are committed.
fn run(app: &'static App, plan: Plan, log: &mut Vec<Change>) -> Result<()> {
    let user = app.domain(format!("user-{}", plan.user))?;
    let second = plan
        .second
        .map(|second| app.domain(format!("user-{second}")));
    let second = second.transpose()?;
    let shared = plan
        .shared
        .map(|(shared, _)| app.domain(format!("shared-{shared}")));
    let shared = shared.transpose()?;
    let keep = plan.shared.is_some_and(|(_, keep)| keep);
    let options = Options {
        seal: plan.seal,
        ..patient()
    };
    // Reserved here, so that the request does not allocate from the C library's heap.
    log.reserve(8);
    let mut open = [None; 4];
    let outcome = user.run_with(&options, |request: &Request| {
        open[0] = Some(change(user, plan.value));
        if let Some(second) = second {
            let second = request.enter(second)?.keep();
            open[1] = Some(change(second, plan.value));
        }
        if let Some(shared) = shared {
            let entered = request.enter(shared)?;
            let made = change(shared, plan.value);
            if keep {
                entered.keep();
                open[2] = Some(made);
            } else {
                entered.leave()?;
                log.push(made);
            }
        }
        if plan.midway {
            request.commit(true)?;
            log.extend(open.iter_mut().filter_map(Option::take));
            open[3] = Some(change(user, !plan.value));
        }
        match plan.end {
            End::Commit => Ok(()),
            End::GiveUp => Err(Error::NotHeld),
            End::WildWrite => {
                wild_write();
                Ok(())
            }
            // SAFETY: ends the request.
            End::Abort => unsafe { libc::abort() },
            End::Invariant => request.fail("as planned"),
        }
    });
    match (plan.end, outcome) {
        (End::Commit, Ok(())) => log.extend(open.into_iter().flatten()),
        (End::GiveUp, Err(RunError::GivenUp(Error::NotHeld)))
        | (End::WildWrite | End::Abort | End::Invariant, Err(RunError::Failed(_))) => {}
        (_, outcome) => anyhow::bail!("{plan:?} ended with {outcome:?}"),
    }
    Ok(())
}

fn threads(_: &str) -> Result<()> {
    // SAFETY: no request shares its locals with other threads; each thread has a log of its own.
    let app = unsafe { App::open("threads-and-model") }?;
    let mut domains = Vec::new();
    for key in (0..USERS)
        .map(|user| format!("user-{user}"))
        .chain((0..SHARED).map(|shared| format!("shared-{shared}")))
    {
        let domain = app.domain(key)?;
        domain.run(|request| {
            let cell = request.alloc(State::default())?;
            request.set_root(Some(cell.into()))
        })?;
        domains.push(domain);
    }
    let threads: Vec<_> = (1..=THREADS)
        .map(|number| {
            std::thread::spawn(move || -> Result<Vec<Change>> {
                let mut random = Random(SEED.wrapping_mul(2 * number + 1));
                let mut log = Vec::new();
                for _ in 0..REQUESTS {
                    run(app, Plan::new(&mut random), &mut log)?;
                }
                Ok(log)
            })
        })
        .collect();
    let mut model: BTreeMap<u32, BTreeMap<u64, Change>> = BTreeMap::new();
    for thread in threads {
        for change in thread.join().ok().context("a thread panicked")?? {
            let changes = model.entry(change.domain).or_default();
            let twice = changes.insert(change.after.changes, change);
            ensure!(
                twice.is_none(),
                "two commits made the same change: {twice:?} {change:?}"
            );
        }
    }
    for domain in domains {
        let changes = model.remove(&domain.number()).unwrap_or_default();
        let mut state = State::default();
        for change in changes.values() {
            state = state.changed(change.value);
            ensure!(
                state == change.after,
                "domain {}: {change:?}, expected {state:?}",
                domain.number()
            );
        }
        // SAFETY: the domain is held, and its root leads to its state.
        let kept =
            domain.run(|_| Ok::<_, Error>(unsafe { *domain.root_address().cast::<State>() }))?;
        ensure!(
            kept == state,
            "domain {} holds {kept:?}, expected {state:?}",
            domain.number()
        );
    }
    let info = app.info()?;
    ensure!(
        info.drafts == 0 && info.broken == 0,
        "drafts are left, or the device has stopped: {info:?}"
    );
    Ok(app.flush()?)
}
