//! Checks of a domain before it is committed: damage must not become the committed version.
//!
//! The cost grows with what the request has written: the audit looks at the pages on the thread's list, which
//! the driver keeps, and at whole domains only if the request asked for it.

use crate::failure::{Kind, panic_text};
use crate::heap::{Damage, Heap, PageCheck, check_zero};
use crate::state::domain::Domain;
use crate::state::{QUARANTINE, RECENT};
use crate::thread::{self, Thread};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use vmsrs_protocol::PAGE_SIZE;
use vmsrs_protocol::shared::WRITTEN_MAX;

/// Where nobody knows what was written, domains of at most this many blocks are checked whole.
const WHOLE: u64 = 64;

/// Pages that the driver is asked for at a time.
const PAGES: usize = 256;

/// Checks the server's invariants, gives the blocks that the request freed back to the heap, and checks
/// the heap.
///
/// # Errors
///
/// The first damage found.
fn audit(thread: &Thread, domain: &'static Domain) -> Result<(), Damage> {
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
    let written = Pages::new(thread, domain);
    // A request that holds one domain alone has written to it: it would not be audited otherwise.
    if thread.state().holds_several() && !written.is_any() {
        return Ok(());
    }
    check_invariants(thread, domain);
    let state = thread.state();
    let mut heap = state.heap(domain);
    for place in 0..state.quarantine().used().min(QUARANTINE) {
        let Some(noted) = state.quarantine().get(state.tag(), place) else {
            continue;
        };
        if std::ptr::eq(noted.domain, domain) {
            state.quarantine().forget(place);
            heap.release(noted.address)?;
        }
    }
    if thread.wants_whole_audit() {
        return heap.check(u64::MAX).map(drop);
    }
    if thread.app().protects() {
        return written.check(&heap);
    }
    if heap.check(WHOLE)? {
        return Ok(());
    }
    for place in 0..state.recent().used().min(RECENT) {
        if let Some(noted) = state.recent().get(state.tag(), place)
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

/// The pages of a domain that the request has written.
///
/// They are on the list of the thread if it is the only one that has worked for the request, and the list has room.
/// Otherwise the driver is asked.
struct Pages<'a> {
    thread: &'a Thread,
    domain: &'static Domain,
}

impl<'a> Pages<'a> {
    fn new(thread: &'a Thread, domain: &'static Domain) -> Self {
        Self { thread, domain }
    }

    /// The addresses of the pages on the thread's list, in all domains, without those that only a domain which the
    /// request has left can have. `None` if others may be missing.
    fn listed(thread: &Thread, skip: usize) -> Option<impl Iterator<Item = u64>> {
        let (state, base) = (thread.state(), thread.app().base());
        let (written, tag) = (thread.written(), state.tag());
        if state.may_have_drafts() || written.count(tag) > WRITTEN_MAX {
            return None;
        }
        let mut place = skip;
        // What the audit itself writes is at the end.
        Some(std::iter::from_fn(move || {
            let page = (place < written.count(tag).min(WRITTEN_MAX)).then(|| written.page(place));
            place += 1;
            page.map(|page| base + u64::from(page) * u64::from(PAGE_SIZE))
        }))
    }

    fn lies_in(&self, heap: &Heap, address: u64) -> bool {
        let first = self.domain.first();
        let offset = (address - self.domain.app().base()) / u64::from(PAGE_SIZE);
        offset.wrapping_sub(first.page.into()) < first.pages.into() || heap.contains(address)
    }

    /// Whether the request may have written to the domain.
    fn is_any(&self) -> bool {
        if !self.domain.app().protects() {
            return true;
        }
        let heap = self.thread.state().heap(self.domain);
        match Self::listed(self.thread, 0) {
            Some(mut pages) => pages.any(|address| self.lies_in(&heap, address)),
            None => self.fetch(0, &mut [0]) != Some(0),
        }
    }

    /// Asks the driver for pages of the domain. `None` on an error: the commit meets the same one, and reports it.
    fn fetch(&self, skip: usize, pages: &mut [u32]) -> Option<usize> {
        let (backend, tag) = (self.domain.app().backend(), self.thread.tag());
        let found = backend.drafts(tag, self.domain.number(), skip, pages);
        found.ok()
    }

    /// Checks them.
    fn check(&self, heap: &Heap) -> Result<(), Damage> {
        if !heap.check_header()? {
            return check_outside(self.thread);
        }
        let mut check = PageCheck::new(heap);
        // If the domain is not hot any more, its request has failed, and the commit says so.
        look_at_resident(self.thread, self.domain, &mut check)?;
        if let Some(pages) = Self::listed(self.thread, 0) {
            let is_only = has_only_domain(self.thread);
            for address in pages {
                if !check.check(address)? && (is_only || self.lies_in(heap, address)) {
                    return Err(Damage::outside(address));
                }
            }
            if Self::listed(self.thread, 0).is_some() {
                return Ok(());
            }
        }
        self.each_fetched(|address| heap.check_page(address))
    }

    /// Looks at all pages that the driver has for the domain.
    fn each_fetched(&self, mut look: impl FnMut(u64) -> Result<(), Damage>) -> Result<(), Damage> {
        let (mut pages, mut skip) = ([0; PAGES], 0);
        // Drafts made meanwhile are at the end of the driver's list.
        while let Some(count) = self.fetch(skip, &mut pages).filter(|&count| count != 0) {
            for page in &pages[..count] {
                let offset = u64::from(*page) * u64::from(PAGE_SIZE);
                look(self.domain.app().base() + offset)?;
            }
            skip += count;
        }
        Ok(())
    }
}

/// Checks that the request has written nothing in a range of a domain that it holds, where all committed bytes are 0.
///
/// # Errors
///
/// The first byte that is not 0.
pub(crate) fn check_unwritten(
    thread: &Thread,
    domain: &'static Domain,
    range: &Range<u64>,
) -> Result<(), Damage> {
    if !thread.app().protects() {
        return Ok(());
    }
    let look = |page: u64| {
        let (from, to) = (
            page.max(range.start),
            range.end.min(page + u64::from(PAGE_SIZE)),
        );
        if from >= to {
            return Ok(());
        }
        // SAFETY: in the range, which the request holds.
        unsafe { check_zero(from, to) }
    };
    match Pages::listed(thread, 0) {
        Some(mut pages) => pages.try_for_each(look),
        None => Pages::new(thread, domain).each_fetched(look),
    }
}

/// Looks at a domain's resident pages, which are on no list, if the thread is inside of it. False if it is inside of
/// another one, or of none that is hot any more.
#[expect(
    clippy::inline_always,
    reason = "on the way of each request that writes"
)]
#[inline(always)]
fn look_at_resident(
    thread: &Thread,
    domain: &'static Domain,
    check: &mut PageCheck<'_>,
) -> Result<bool, Damage> {
    if !thread.is_inside_hot() {
        return Ok(true);
    }
    let hot = domain.hot();
    let Some(key) = hot.key(domain.number()) else {
        return Ok(false);
    };
    for page in hot.pages(key) {
        look_at(domain, page, check)?;
    }
    Ok(true)
}

/// Looks at a page that is to lie in the domain.
#[expect(
    clippy::inline_always,
    reason = "on the way of each request that writes"
)]
#[inline(always)]
fn look_at(domain: &'static Domain, page: u32, check: &mut PageCheck<'_>) -> Result<(), Damage> {
    let address = domain.app().base() + u64::from(page) * u64::from(PAGE_SIZE);
    if check.check(address)? {
        Ok(())
    } else {
        Err(Damage::outside(address))
    }
}

/// Whether all that the request has written is in one domain, which it holds: no page may lie elsewhere.
pub(super) fn has_only_domain(thread: &Thread) -> bool {
    thread.left_pages() == 0 && !thread.state().holds_several()
}

/// Fails for a page on the thread's list that is in none of the domains held: it is in an extent that its heap does not
/// have yet.
fn check_outside(thread: &Thread) -> Result<(), Damage> {
    let state = thread.state();
    let Some(mut pages) = Pages::listed(thread, thread.left_pages()) else {
        return Ok(());
    };
    let is_outside = |address: &u64| {
        let mut domains = (0..state.places()).filter_map(|place| state.domain_at(place));
        !domains.any(|domain| Pages::new(thread, domain).lies_in(&state.heap(domain), *address))
    };
    match pages.find(is_outside) {
        Some(address) => Err(Damage::outside(address)),
        None => Ok(()),
    }
}

/// Audits a request that is plain, and has written something: its only domain. False if that takes more than a look at
/// the pages on the thread's list; nothing is done then.
///
/// # Errors
///
/// The first damage found.
#[inline]
pub(crate) fn audit_plain(
    thread: &Thread,
    domain: &'static Domain,
    tag: u64,
) -> Result<bool, Damage> {
    let (state, written) = (thread.state(), thread.written());
    let is_short = domain.holder() == tag
        && state.first_has_heap()
        && !thread.wants_whole_audit()
        && written.count(tag) <= WRITTEN_MAX
        && thread.left_pages() == 0
        && domain.app().invariant().get().is_none()
        && domain.invariant().get().is_none();
    if !is_short {
        return Ok(false);
    }
    let heap = domain.heap(true);
    thread.exclusive_alone(|| {
        heap.check_header()?;
        let mut check = PageCheck::new(&heap);
        if !look_at_resident(thread, domain, &mut check)? {
            return Ok(false);
        }
        let mut place = 0;
        while place < written.count(tag) {
            look_at(domain, written.page(place), &mut check)?;
            place += 1;
        }
        // A signal handler may have made it longer than it can be.
        Ok(written.count(tag) <= WRITTEN_MAX)
    })
}

/// Audits a domain that the request is about to commit and leave.
///
/// # Errors
///
/// The first damage found.
pub(crate) fn audit_left(thread: &Thread, domain: &'static Domain) -> Result<(), Damage> {
    audit(thread, domain)?;
    check_outside(thread)?;
    thread.set_left_pages(thread.written().count(thread.tag()));
    Ok(())
}

/// Audits all domains that the request holds.
///
/// # Errors
///
/// The first damage found.
pub(crate) fn audit_all(thread: &Thread) -> Result<(), Damage> {
    let state = thread.state();
    for domain in (0..state.places()).filter_map(|place| state.domain_at(place)) {
        audit(thread, domain)?;
    }
    if thread.app().protects() && !thread.wants_whole_audit() && has_only_domain(thread) {
        // The audit of the domain has looked at every page.
        return Ok(());
    }
    check_outside(thread)
}

#[cfg(test)]
mod tests {
    use crate::mock::{Hooks, MockBackend, list_written};
    use crate::{App, Domain, Error, Failure, Kind, RunError, thread};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, Mutex, Once};
    use vmsrs_protocol::PAGE_SIZE;
    use vmsrs_protocol::shared::{ThreadControl, WRITTEN_MAX};

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
            |control| control.held = [77; vmsrs_protocol::shared::HELD_MAX],
            |control| *control = bytemuck::Zeroable::zeroed(),
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

    /// Two domains of an app that says what was written, each with a block, and the page of that block.
    fn listed(name: &str, set: impl FnOnce(&mut Hooks)) -> [(&'static Domain, u64, u32); 2] {
        let app = MockBackend::app(name, |hooks| {
            hooks.protects = true;
            set(hooks);
        });
        ["one", "two"].map(|key| {
            let domain = app.domain(key).unwrap();
            let block = domain.run(|_| domain.allocate(100, 16)).unwrap();
            let address = block.as_ptr() as u64;
            let page = (address - app.base()) / u64::from(PAGE_SIZE);
            (domain, address, page as u32)
        })
    }

    /// Overwrites the red zone of a block, and lists pages as written. Repairs it afterwards.
    fn overflow((domain, address, _): (&'static Domain, u64, u32), list: &[u32]) -> Option<Kind> {
        let red_zone = (address + 100) as *mut u8;
        // SAFETY: a byte of the domain, which the request holds; nobody else uses it now.
        let store = |byte| unsafe { red_zone.write_volatile(byte) };
        let outcome = domain.run(|_| {
            store(0);
            list_written(list);
            Ok::<_, Error>(())
        });
        store(crate::heap::layout::RED);
        match outcome {
            Err(RunError::Failed(failure)) => Some(failure.kind),
            Ok(()) => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn audit_looks_at_written_pages_only() {
        let [one, (_, _, other)] = listed("written pages", |hooks| {
            hooks.drafts = Box::new(|_, _, _| panic!("the list is complete"));
        });
        assert_eq!(overflow(one, &[one.2]), Some(Kind::RedZone));
        assert_eq!(overflow(one, &[one.2 + 1, one.2]), Some(Kind::RedZone));
        assert_eq!(overflow(one, &[one.2 + 1]), None);
        // A page of a domain that the request does not hold, and has not left.
        assert_eq!(overflow(one, &[other]), Some(Kind::HeapCorrupt));
    }

    #[test]
    fn driver_is_asked_where_the_list_is_short() {
        let fetches = Arc::new(Mutex::new(Vec::new()));
        let (seen, page) = (Arc::clone(&fetches), Arc::new(AtomicU32::new(0)));
        let answer = Arc::clone(&page);
        let [one, _] = listed("short list", |hooks| {
            hooks.drafts = Box::new(move |domain, skip, pages| {
                seen.lock().unwrap().push((domain, skip));
                pages[0] = answer.load(Ordering::SeqCst);
                usize::from(skip == 0)
            });
        });
        page.store(one.2, Ordering::SeqCst);
        fetches.lock().unwrap().clear();
        assert_eq!(overflow(one, &[one.2 + 1; WRITTEN_MAX]), None);
        assert!(fetches.lock().unwrap().is_empty());
        assert_eq!(
            overflow(one, &[one.2 + 1; WRITTEN_MAX + 1]),
            Some(Kind::RedZone)
        );
        // Another thread may have written.
        let outcome = one.0.run(|_| {
            thread::current().unwrap().state().note_drafts();
            Ok::<_, Error>(())
        });
        outcome.unwrap();
        let number = one.0.number();
        assert_eq!(
            *fetches.lock().unwrap(),
            [(number, 0), (number, 0), (number, 1)]
        );
    }

    #[test]
    fn pages_of_a_domain_that_was_left_are_skipped() {
        let checks = Arc::new(Mutex::new(Vec::new()));
        let [(one, _, first), (two, _, second)] = listed("left", |_| ());
        for domain in [one, two] {
            let checked = Arc::clone(&checks);
            let check = move |domain: &Domain| {
                checked.lock().unwrap().push(domain.number());
                Ok(())
            };
            domain.set_invariant(check).unwrap();
        }
        let outcome = one.run(|request| {
            let entered = request.enter(two)?;
            list_written(&[second]);
            entered.leave()?;
            list_written(&[second, first]);
            Ok::<_, Error>(())
        });
        outcome.unwrap();
        assert_eq!(*checks.lock().unwrap(), [two.number(), one.number()]);
    }

    #[test]
    fn block_is_not_taken_for_zero_where_the_request_has_written_before() {
        const MIB: usize = 1 << 20;
        let app = MockBackend::app("zeroed", |hooks| hooks.protects = true);
        for moved in [false, true] {
            let domain = app.domain(if moved { "moved" } else { "taken" }).unwrap();
            domain
                .run(|_| {
                    domain.allocate(200 * MIB, 16)?;
                    domain.allocate(6 * MIB, 16).map(drop)
                })
                .unwrap();
            let outcome: Result<(), RunError<Error>> = domain.run(|_| {
                let old = domain.allocate_zeroed(8 * MIB, 16)?;
                let after = domain.allocate(5 * MIB, 16)?;
                let wild = after.as_ptr().wrapping_add(8 * MIB);
                let offset = wild as u64 - domain.app().base();
                list_written(&[(offset / u64::from(PAGE_SIZE)) as u32]);
                // SAFETY: room of the domain where nothing was ever written; the damage is the test.
                unsafe { wild.write(0x55) };
                let new = if moved {
                    // SAFETY: it is not used any more.
                    unsafe { domain.reallocate(old, 16 * MIB) }?
                } else {
                    domain.allocate_zeroed(16 * MIB, 16)?
                };
                panic!("{new:?}");
            });
            match outcome {
                Err(RunError::Failed(failure)) => assert_eq!(failure.kind, Kind::HeapCorrupt),
                other => panic!("{other:?}"),
            }
        }
    }
}
