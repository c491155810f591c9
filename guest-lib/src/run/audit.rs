//! Checks of a domain before it is committed: damage must not become the committed version.
//!
//! The cost grows with what the request has written: the audit looks at the pages that the driver has
//! drafts of, and at whole domains only if they are small or the request asked for it.

use crate::failure::{Kind, panic_text};
use crate::heap::{Damage, Heap};
use crate::shared::control::DraftMark;
use crate::state::domain::Domain;
use crate::state::{QUARANTINE, RECENT};
use crate::thread::{self, Thread};
use std::panic::{AssertUnwindSafe, catch_unwind};
use vmsrs_protocol::PAGE_SIZE;

/// Domains of at most this many blocks are checked whole: cheaper than asking the driver.
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
    if !thread.is_intact() {
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
    let mut written = Written::new(thread, domain);
    // A request that holds one domain alone has written to it: it would not be audited otherwise.
    if thread.state().held().as_slice().len() > 1 && !written.is_any() {
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
    if heap.check(limit)? || written.check(&heap)? {
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

/// The pages of a domain that the request has written, as far as the driver was asked.
///
/// The driver's commit walks the same list, but the audit must know it first: what it finds fails the
/// request. Nothing is fetched twice.
struct Written<'a> {
    thread: &'a Thread,
    domain: &'static Domain,
    pages: [u32; PAGES],
    /// Pages at the front of the driver's list that were fetched; of these, the last `count` are in `pages`.
    fetched: usize,
    count: usize,
    /// What the control block said of the thread's drafts before the latest fetch; `None` before the first.
    mark: Option<DraftMark>,
    /// The backend has no list.
    unknown: bool,
}

impl<'a> Written<'a> {
    fn new(thread: &'a Thread, domain: &'static Domain) -> Self {
        Self {
            thread,
            domain,
            pages: [0; PAGES],
            fetched: 0,
            count: 0,
            mark: None,
            unknown: false,
        }
    }

    /// Fetches the next pages.
    fn fetch(&mut self) {
        let (backend, mark) = (self.domain.app().backend(), self.thread.draft_mark());
        let number = self.domain.number();
        // The commit meets the same error, and reports it.
        let found = backend.drafts(self.thread.tag(), number, self.fetched, &mut self.pages);
        self.mark = Some(mark);
        self.count = 0;
        match found {
            Ok(Some(count)) => {
                self.count = count;
                self.fetched += count;
            }
            _ => self.unknown = true,
        }
    }

    /// Whether the request may have written to the domain.
    fn is_any(&mut self) -> bool {
        self.fetch();
        self.unknown || self.count != 0
    }

    /// Whether the list may have more than was fetched: drafts made since, also by other threads of the request, are at
    /// its end.
    fn has_more(&self) -> bool {
        self.count == PAGES
            || !self.thread.state().members.is_empty()
            || self
                .mark
                .is_none_or(|mark| mark.may_be_outdated(self.thread.draft_mark()))
    }

    /// Checks all of these pages. False if the list is unknown.
    fn check(&mut self, heap: &Heap) -> Result<bool, Damage> {
        loop {
            for page in &self.pages[..self.count] {
                let offset = u64::from(*page) * u64::from(PAGE_SIZE);
                heap.check_page(self.domain.app().base() + offset)?;
            }
            if self.unknown || !self.has_more() {
                return Ok(!self.unknown);
            }
            self.fetch();
            // Of a count at its limit, nothing tells whether drafts were made; the list does.
            if !self.unknown && self.count == 0 {
                return Ok(true);
            }
        }
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
    use crate::mock::{MockBackend, overwrite_draft_count};
    use crate::{App, Domain, Error, Failure, Kind, RunError, thread};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex, Once};
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
    fn overwritten_control_block_fails_only_its_request() {
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
    fn overwritten_lock_word_is_found_before_commit() {
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

    #[test]
    fn drafts_are_fetched_once_unless_more_were_made() {
        const BLOCKS: usize = 100;
        static MORE: AtomicBool = AtomicBool::new(false);
        let fetches = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&fetches);
        let app = MockBackend::app("fetched once", |hooks| {
            hooks.drafts = Box::new(move |domain, skip, pages| {
                seen.lock().unwrap().push((domain, skip));
                // The first page of its first extent.
                pages[0] = domain * vmsrs_protocol::EXTENT_UNIT_PAGES;
                Some(usize::from(skip == 0))
            });
        });
        let [one, two] = ["one", "two"].map(|key| app.domain(key).unwrap());
        two.set_invariant(|_| {
            if MORE.load(Ordering::SeqCst) {
                overwrite_draft_count(2, !2);
            }
            Ok(())
        })
        .unwrap();
        two.run(|_| {
            (0..BLOCKS).try_for_each(|_| two.allocate(16, 16).map(drop))?;
            Ok::<_, Error>(())
        })
        .unwrap();
        for (more, expected) in [
            (false, &[(one.number(), 0), (two.number(), 0)][..]),
            (
                true,
                &[(one.number(), 0), (two.number(), 0), (two.number(), 1)],
            ),
        ] {
            MORE.store(more, Ordering::SeqCst);
            fetches.lock().unwrap().clear();
            one.run(|request| request.enter(two).map(|entered| entered.keep().number()))
                .unwrap();
            assert_eq!(*fetches.lock().unwrap(), expected);
        }
    }

    #[test]
    fn audit_ends_whatever_the_count_of_drafts_says() {
        const BLOCKS: usize = 100;
        let fetches = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&fetches);
        let app = MockBackend::app("count of drafts at its limit", |hooks| {
            hooks.drafts = Box::new(move |_, skip, pages| {
                let before = counter.fetch_add(1, Ordering::SeqCst);
                assert!(before < 100, "the audit does not end");
                pages[0] = 0;
                Some(usize::from(skip == 0))
            });
        });
        let domain = app.domain("one").unwrap();
        domain
            .run(|_| {
                (0..BLOCKS).try_for_each(|_| domain.allocate(16, 16).map(drop))?;
                Ok::<_, Error>(())
            })
            .unwrap();
        for (drafts, complement) in [(u32::MAX, 0), (u32::MAX, u32::MAX), (7, 7)] {
            fetches.store(0, Ordering::SeqCst);
            domain
                .run(|_| {
                    overwrite_draft_count(drafts, complement);
                    Ok::<_, Error>(())
                })
                .unwrap();
            assert!(fetches.load(Ordering::SeqCst) > 0);
        }
    }
}
