//! A request that gives up just when its deadline strikes leaves nothing behind.

use anyhow::{Result, ensure};

use crate::host::Guest;
use crate::raw::{App, peek, poke};
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "request_given_up_at_deadline_leaves_nothing_behind",
    machine: Machine::Usual,
    steps: &[("give-up", give_up)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run("give-up", "").map(drop)
}

fn give_up(_: &str) -> Result<()> {
    let app = App::open("given-up-overdue")?;
    let (domain, page) = app.domain("user", 4)?;
    let (other, _) = app.domain("other", 4)?;
    let thread = app.thread()?;
    for round in 1..=5u8 {
        let tag = thread.begin(&[domain])?;
        // SAFETY: the page is the domain's, which the request holds.
        unsafe { poke(page, 0xff) };
        // SAFETY: the control block is mapped as long as the process lives.
        unsafe { std::ptr::write_volatile(&raw mut (*thread.control()).deadline_ns, 1) };
        // A commit of a domain without drafts changes nothing, and tells when the deadline was seen.
        while thread.commit_domain(tag, other).is_ok() {
            std::thread::yield_now();
        }
        // SAFETY: as above.
        unsafe { std::ptr::write_volatile(&raw mut (*thread.control()).deadline_ns, 0) };
        thread.discard(tag)?;
        // SAFETY: the pages are readable by the whole process.
        let seen = unsafe { peek(page) };
        ensure!(
            seen == round - 1,
            "round {round}: the draft is gone, not {seen}"
        );
        thread.end()?;
        // At once, before the driver can have tidied up.
        let tag = thread.begin(&[domain])?;
        // SAFETY: the page is the domain's, which the request holds.
        unsafe { poke(page, round) };
        thread.commit(tag, 0)?;
        thread.end()?;
    }
    Ok(())
}
