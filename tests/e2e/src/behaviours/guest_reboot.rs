//! Sealed commits survive a crash and a reboot of the guest, at the same addresses.

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use vmsrs_protocol::ioctl::COMMIT_SEAL;

use crate::host::Guest;
use crate::raw::{App, Domain};
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "sealed_commits_survive_guest_panic_and_reboot",
    machine: Machine::Restarting,
    steps: &[("look", look), ("go-down", go_down)],
    host,
};

const APP: &str = "guest-reboot";
/// Pages of a domain; every commit writes the same value to all of them.
const PAGES: usize = 3;
/// Pages of the domain whose commits are not waited for: a seal message has 256 records, so a batch with them needs several.
const MANY_PAGES: usize = 400;
/// Domains that get only sealed commits.
const USERS: usize = 3;
/// The domain whose last commits may not be sealed when the guest goes down.
const UNSEALED: usize = USERS;
/// The domain with a draft when the guest goes down.
const DRAFT: usize = USERS + 1;
const DOMAINS: usize = USERS + 2;

/// How the guest goes down.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum End {
    Panic,
    Reboot,
    TripleFault,
}

/// What the guest does in one boot: commits to these domains in this order and waits for each seal, then goes down.
#[derive(Debug, Serialize, Deserialize)]
struct Work {
    commits: Vec<usize>,
    /// Commits that are not waited for.
    unsealed: u64,
    end: End,
}

/// Address and value of every domain.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Contents {
    addresses: Vec<u64>,
    values: Vec<u64>,
}

fn host(guest: &mut Guest) -> Result<()> {
    guest.expect_complaint("sysrq triggered crash");
    let mut model = contents(guest)?;
    ensure!(
        model.values == [0; DOMAINS],
        "new domains are not zero: {model:?}"
    );
    let restarts_before = restarts(guest)?;
    for (round, end) in (1..).zip([End::Panic, End::Reboot, End::TripleFault]) {
        let work = Work {
            commits: random_commits(),
            unsealed: 1 + random() % 5,
            end,
        };
        let lost_before = guest.incidents("guest-down")?.len();
        guest.run_down("go-down", &serde_json::to_string(&work)?)?;
        for &domain in &work.commits {
            model.values[domain] += 1;
        }
        let found = contents(guest)?;
        // These commits were not waited for: the newest that is there is there as a whole.
        let unsealed = found.values[UNSEALED] - model.values[UNSEALED];
        ensure!(unsealed <= work.unsealed, "{model:?}, found {found:?}");
        model.values[UNSEALED] += unsealed;
        ensure!(
            found == model,
            "after {work:?}: expected {model:?}, found {found:?}"
        );

        ensure!(
            restarts(guest)? == restarts_before + round,
            "the host has not counted the restart"
        );
        let reason = match end {
            End::Panic | End::Reboot => "reset",
            End::TripleFault => "crash",
        };
        let last = &guest.control().status()?["last_restart"];
        ensure!(
            last["reason"] == reason,
            "not the reason of the restart: {last}"
        );
        let lost = guest.incidents("guest-down")?;
        ensure!(
            lost.len() == lost_before + 1,
            "not exactly one incident for what was lost: {lost:?}"
        );
        let facts = &lost[lost_before]["guest_down"];
        ensure!(
            facts["domains"].as_u64() >= Some(DOMAINS as u64),
            "not as many domains as were opened: {facts}"
        );
    }
    Ok(())
}

fn contents(guest: &mut Guest) -> Result<Contents> {
    Ok(serde_json::from_str(&guest.run("look", "")?)?)
}

fn restarts(guest: &Guest) -> Result<u64> {
    guest.control().status()?["restarts"]
        .as_u64()
        .context("the number of restarts")
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Up to 40 commits, each to a random domain.
fn random_commits() -> Vec<usize> {
    (0..random() % 41)
        .map(|_| random() as usize % USERS)
        .collect()
}

/// The number of a domain's pages.
fn pages(number: usize) -> usize {
    if number == UNSEALED {
        MANY_PAGES
    } else {
        PAGES
    }
}

fn open(app: &App) -> Result<Vec<(Domain, *mut u64)>> {
    (0..DOMAINS)
        .map(|number| {
            let pages = pages(number) as u32;
            let (domain, page) = app.domain(&format!("user-{number}"), pages)?;
            Ok((domain, page.cast()))
        })
        .collect()
}

/// The words that a commit to this domain writes, the first of each page.
fn words(number: usize, first: *mut u64) -> impl Iterator<Item = *mut u64> {
    const WORDS_PER_PAGE: usize = 4096 / size_of::<u64>();
    (0..pages(number)).map(move |page| first.wrapping_add(page * WORDS_PER_PAGE))
}

fn look(_: &str) -> Result<()> {
    let app = App::open(APP)?;
    let mut contents = Contents {
        addresses: Vec::new(),
        values: Vec::new(),
    };
    for (number, (_, first)) in open(&app)?.into_iter().enumerate() {
        // SAFETY: the pages are readable by the whole process.
        let values: Vec<u64> = words(number, first)
            .map(|word| unsafe { word.read_volatile() })
            .collect();
        ensure!(
            values.iter().all(|&value| value == values[0]),
            "a commit is there in part: {values:?}"
        );
        contents.addresses.push(first as u64);
        contents.values.push(values[0]);
    }
    println!("{}", serde_json::to_string(&contents)?);
    Ok(())
}

fn go_down(argument: &str) -> Result<()> {
    let work: Work = serde_json::from_str(argument)?;
    let app = App::open(APP)?;
    let domains = open(&app)?;
    let thread = app.thread()?;
    let draft = |number: usize| -> Result<u64> {
        let (domain, first) = domains[number];
        let tag = thread.begin(&[domain])?;
        // SAFETY: the pages are the domain's, which the request holds.
        let next = unsafe { first.read_volatile() } + 1;
        for word in words(number, first) {
            // SAFETY: as above.
            unsafe { word.write_volatile(next) };
        }
        Ok(tag)
    };
    for number in work.commits {
        thread.commit(draft(number)?, COMMIT_SEAL)?;
        thread.end()?;
    }
    for _ in 0..work.unsealed {
        thread.commit(draft(UNSEALED)?, 0)?;
        thread.end()?;
    }
    let _uncommitted = draft(DRAFT)?;
    match work.end {
        End::Panic => fs::write("/proc/sysrq-trigger", "c")?,
        End::Reboot => {}
        // The kernel's last resort for a reboot: an exception without a handler.
        End::TripleFault => fs::write("/sys/kernel/reboot/type", "triple")?,
    }
    // SAFETY: the guest's file systems are in memory, so nothing is lost.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    bail!(
        "the guest did not go down: {}",
        std::io::Error::last_os_error()
    )
}
