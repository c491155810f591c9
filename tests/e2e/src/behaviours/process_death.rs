//! When a process dies, its requests are discarded and its commits are kept.

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use crate::host::Guest;
use crate::raw::{App, peek, poke};
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "process_death_discards_requests_and_keeps_commits",
    machine: Machine::Usual,
    steps: &[("die", die), ("look", look)],
    host,
};

/// Most deaths until one has an instruction: only a thread that reports its own end has registers, and the driver's watch,
/// which runs every 10 ms, may find it first.
const DEATHS: usize = 20;

fn host(guest: &mut Guest) -> Result<()> {
    for _ in 0..DEATHS {
        let answer = guest.step("die", "")?;
        ensure!(
            answer.signal == Some(libc::SIGKILL),
            "the process was not killed by SIGKILL: {answer:?}"
        );
        guest.run_steps(&["look"])?;
        let mut incidents = guest.incidents("process-death")?;
        incidents.retain(|incident| incident["app"] == "process-death");
        ensure!(!incidents.is_empty(), "no incident of the app");
        // The driver reports where the thread was: in the system call that killed it.
        let has_instruction = |incident: &Value| {
            let instruction = incident["instruction"].as_u64();
            instruction.is_some_and(|at| at > 0x1000)
        };
        if incidents.iter().any(has_instruction) {
            return Ok(());
        }
    }
    bail!("none of {DEATHS} deaths has an instruction")
}

/// Commits, then is killed in the middle of the next request.
fn die(_: &str) -> Result<()> {
    let app = App::open("process-death")?;
    let (domain, page) = app.domain("user", 8)?;
    let thread = app.thread()?;
    let tag = thread.begin(&[domain])?;
    // SAFETY: the pages are the domain's, which the request holds.
    unsafe {
        poke(page, 1);
        poke(page.add(4096), 1);
    }
    thread.commit(tag, 0)?;
    thread.end()?;
    let _tag = thread.begin(&[domain])?;
    // SAFETY: as above; and a process may kill itself.
    unsafe {
        poke(page, 2);
        poke(page.add(2 * 4096), 2);
        libc::kill(libc::getpid(), libc::SIGKILL);
    }
    unreachable!("SIGKILL does not return")
}

fn look(_: &str) -> Result<()> {
    let app = App::open("process-death")?;
    let (domain, page) = app.domain("user", 8)?;
    // SAFETY: the pages are readable by the whole process.
    unsafe {
        ensure!(peek(page) == 1, "the committed version was not restored");
        ensure!(
            peek(page.add(4096)) == 1,
            "the commit to the second page is lost"
        );
        ensure!(
            peek(page.add(2 * 4096)) == 0,
            "a page that was never committed is not zero"
        );
    }
    ensure!(app.info()?.drafts == 0, "a draft is left");
    // The lock is free and the domain can be used.
    let thread = app.thread()?;
    thread.commit_byte(domain, page, 3, 0)?;
    Ok(app.flush()?)
}
