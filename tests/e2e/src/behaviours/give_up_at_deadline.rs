//! A request that is given up just as its deadline expires leaves nothing behind.

use anyhow::{Result, ensure};

use crate::raw::{App, peek, poke};
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "request_given_up_at_deadline_leaves_nothing_behind",
    machine: Machine::Usual,
    steps: &[("give-up", give_up)],
    host: |guest| guest.run_steps(&["give-up"]),
};

fn give_up(_: &str) -> Result<()> {
    let app = App::open("given-up-overdue")?;
    let (domain, page) = app.domain("user", 4)?;
    let (other, _) = app.domain("other", 4)?;
    let thread = app.thread()?;
    for round in 1..=5u8 {
        let tag = thread.begin(&[domain])?;
        // SAFETY: the page is the domain's, which the request holds.
        unsafe { poke(page, 0xff) };
        // SAFETY: the control block stays mapped until the process ends.
        unsafe { std::ptr::write_volatile(&raw mut (*thread.control()).deadline_ns, 1) };
        // A commit of a domain without drafts changes nothing, and fails once the driver has seen the deadline.
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
            "round {round}: the page holds {seen} after the discard"
        );
        thread.end()?;
        // At once, before the driver can have cleaned up.
        thread.commit_byte(domain, page, round, 0)?;
    }
    Ok(())
}
