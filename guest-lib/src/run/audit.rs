//! Checks of a domain before it is committed: what a request damaged must not become the authority.
//!
//! What it costs grows with what the request has written: the audit looks at the pages that the driver
//! has drafts of, and at whole domains only if they are small or the request asked for it.

use crate::failure::Kind;
use crate::failure::panic_text;
use crate::heap::{Damage, Heap};
use crate::state::domain::Domain;
use crate::state::{QUARANTINE, RECENT};
use crate::thread::{self, Thread};
use std::panic::{AssertUnwindSafe, catch_unwind};
use vmsrs_protocol::PAGE_SIZE;

/// Blocks up to which the whole domain is checked always: cheaper than asking the driver.
const WHOLE: u64 = 64;

/// Pages that the driver is asked for at a time.
const PAGES: usize = 256;

/// Checks the server's invariants, gives the blocks that the request freed back to the heap, and checks
/// the heap.
///
/// # Errors
///
/// The first damage found.
pub(crate) fn audit(thread: &Thread, domain: &'static Domain) -> Result<(), Damage> {
    if !thread.is_whole() {
        // The driver takes the locks of a request that it has failed at its deadline.
        let (kind, message): (_, &[u8]) = if thread.is_overdue() {
            (Kind::Deadline, b"")
        } else {
            (
                Kind::Memory,
                b"the request's control block or a lock word was overwritten",
            )
        };
        thread::fail_request(kind, 0, message);
    }
    if !was_written(thread, domain) {
        return Ok(());
    }
    check_invariants(thread, domain);
    let state = thread.state();
    let mut heap = state.heap(domain);
    for place in 0..state.quarantine().used().min(QUARANTINE) {
        let Some(noted) = state.quarantine().get(place) else {
            continue;
        };
        if std::ptr::eq(noted.domain, domain) {
            state.quarantine().take(place);
            heap.release(noted.address)?;
        }
    }
    let limit = if thread.wants_whole_audit() {
        u64::MAX
    } else {
        WHOLE
    };
    if heap.check(limit)? || check_drafts(thread, domain, &heap)? {
        return Ok(());
    }
    for place in 0..state.recent().used().min(RECENT) {
        if let Some(noted) = state.recent().get(place)
            && std::ptr::eq(noted.domain, domain)
        {
            heap.check_block(noted.address)?;
        }
    }
    Ok(())
}

/// Checks a domain that the request holds and is about to commit; makes the request fail if its
/// invariants do not hold.
fn check_invariants(thread: &Thread, domain: &'static Domain) {
    for invariant in [domain.app().invariant(), domain.invariant()] {
        let Some(check) = invariant.get() else {
            continue;
        };
        thread.set_checking(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| check(domain)));
        thread.set_checking(false);
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(message)) => thread::fail_request(Kind::Invariant, 0, message.as_bytes()),
            Err(payload) => {
                thread::fail_request(Kind::Invariant, 0, panic_text(&*payload).as_bytes())
            }
        }
    }
}

/// Pages of a domain that the request has written, from `skip` on; `None` if nobody knows.
fn drafts(thread: &Thread, domain: &Domain, skip: usize, pages: &mut [u32]) -> Option<usize> {
    let backend = domain.app().backend();
    // An error is one of the commit, too, which reports it.
    let found = backend.drafts(thread.tag(), domain.number(), skip, pages);
    found.ok().flatten()
}

/// Whether the request may have written to the domain. A request that holds one domain alone has: it
/// would not be audited otherwise.
fn was_written(thread: &Thread, domain: &Domain) -> bool {
    thread.state().held().as_slice().len() <= 1 || drafts(thread, domain, 0, &mut [0]) != Some(0)
}

/// Checks the pages that the request has written. False if nobody knows which they are.
fn check_drafts(thread: &Thread, domain: &Domain, heap: &Heap) -> Result<bool, Damage> {
    let mut pages = [0; PAGES];
    let mut skip = 0;
    loop {
        let Some(count) = drafts(thread, domain, skip, &mut pages) else {
            return Ok(false);
        };
        for page in &pages[..count] {
            let offset = u64::from(*page) * u64::from(PAGE_SIZE);
            heap.check_page(domain.app().base() + offset)?;
        }
        if count < PAGES {
            return Ok(true);
        }
        skip += count;
    }
}

/// Audits all domains that the request holds.
///
/// # Errors
///
/// The first damage found.
pub(crate) fn audit_all(thread: &Thread) -> Result<(), Damage> {
    for place in 0..vmsrs_protocol::shared::HELD_MAX {
        if let Some(domain) = thread.state().domain_at(place) {
            audit(thread, domain)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::{App, Domain, Error, Failure, Kind, RunError, thread};
    use std::sync::Once;
    use vmsrs_protocol::shared::ThreadControl;

    fn domains(name: &str) -> [&'static Domain; 2] {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // SAFETY: before any other thread of the test reads the environment through this library.
            unsafe { std::env::set_var("VMSRS_DEVICE", "none") };
        });
        // SAFETY: the requests of these tests lend nothing to other threads.
        let app = unsafe { App::open(name) }.unwrap();
        [app.domain("one").unwrap(), app.domain("two").unwrap()]
    }

    /// A request that damages its own control block.
    fn damage([one, two]: [&'static Domain; 2], damage: impl Fn(&mut ThreadControl)) -> Failure {
        let outcome = one.run(|request| {
            request.enter(two)?.keep();
            let control = thread::current().unwrap().control();
            // SAFETY: this thread's control block; the damage is the test.
            damage(unsafe { &mut *control.as_ptr() });
            Ok::<_, Error>(())
        });
        match outcome {
            Err(RunError::Failed(failure)) => *failure,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_control_block_that_its_request_overwrites_costs_that_request_alone() {
        let domains = domains("control block");
        let damages: [fn(&mut ThreadControl); 6] = [
            |control| control.tag = 0,
            |control| control.tag = u64::MAX >> 1,
            |control| control.held_count = 0,
            |control| control.held_count = u32::MAX,
            |control| control.held = [77; 32],
            |control| *control = ThreadControl::default(),
        ];
        for overwrite in damages {
            let failure = damage(domains, overwrite);
            assert_eq!(failure.kind, Kind::Memory);
            assert!(failure.message.contains("control block"), "{failure}");
            // Both locks are free again.
            for domain in domains {
                domain.run(|request| request.alloc(1u8).map(drop)).unwrap();
            }
        }
    }

    #[test]
    fn a_lock_word_that_a_request_overwrites_is_found_before_its_commit() {
        let [one, two] = domains("lock word");
        let outcome = one.run(|request| {
            request.enter(two)?.keep();
            let tag = thread::current().unwrap().tag();
            two.lock_word()
                .store(tag + 1, std::sync::atomic::Ordering::Relaxed);
            Ok::<_, Error>(())
        });
        let Err(RunError::Failed(failure)) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(failure.kind, Kind::Memory);
        one.run(|request| request.alloc(1u8).map(drop)).unwrap();
    }
}
