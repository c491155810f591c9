//! The state of a request, shared by its threads.
//!
//! States are never unmapped: a ticket may outlive its request, and finds another tag then, or none.

pub(crate) mod deferred;
mod directory;
pub(crate) mod domain;
pub(crate) mod members;
mod pool;
pub(crate) mod ring;
pub(crate) mod slots;

use crate::error::Error;
use crate::failure::Failure;
use crate::heap::Heap;
use crate::os::futex;
use crate::os::latch::Latch;
use crate::os::region::Region;
use crate::shared::control::Control;
use crate::shared::held::{self, HeldList};
use crate::shared::pkru;
use deferred::{DEFERS_MAX, Deferred};
use domain::Domain;
use members::Members;
use pool::Pool;
use ring::Ring;
use std::cell::UnsafeCell;
use std::mem::{MaybeUninit, size_of};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use vmsrs_protocol::shared::{HELD_MAX, ThreadControl};

/// Blocks that a request can free before the oldest goes back to the heap.
pub(crate) const QUARANTINE: usize = 256;

/// Newest blocks of a request that the audit looks at in a big domain.
pub(crate) const RECENT: usize = 64;

/// How long a thread that waits for another one's domain sleeps before it checks whether to give up.
const HELD_PATIENCE: Duration = Duration::from_millis(10);

/// A domain that the request holds.
#[derive(Clone, Copy)]
struct Held {
    domain: &'static Domain,
    /// It had a heap when the request took it, or got one since. Kept outside the domain, where a
    /// request's stray write cannot make a damaged heap look like a new domain.
    has_heap: bool,
}

/// Guarded by the latch as soon as the request can have more than one thread.
struct Lists {
    /// Domains whose locks are taken.
    domains: [Option<Held>; HELD_MAX],
    /// Places of `domains` from here on were not used by this request: most requests use one, and need not
    /// scan them all.
    used: usize,
    quarantine: Ring<QUARANTINE>,
    recent: Ring<RECENT>,
    defers: Vec<Deferred>,
}

impl Lists {
    fn held(&self) -> impl Iterator<Item = &Held> + Clone {
        self.domains.iter().take(self.used).flatten()
    }

    /// Whether that domain alone is on the lists, and on no others; `more` is 0 if these are empty.
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    fn is_plain(&self, domain: &Domain, more: usize) -> bool {
        let others = self.quarantine.noted() | self.recent.noted() | self.defers.len() | more;
        others == 0
            && self.used == 1
            && self.domains[0].is_some_and(|held| ptr::eq(held.domain, domain))
    }

    fn held_mut(&mut self) -> impl Iterator<Item = &mut Held> {
        self.domains.iter_mut().take(self.used).flatten()
    }
}

/// A copy of a request's list of domains.
#[derive(Debug)]
pub(crate) struct HeldDomains {
    /// The first `count` of them are set: most requests hold one domain, and need not fill the rest.
    domains: [MaybeUninit<u32>; HELD_MAX],
    count: usize,
}

impl HeldDomains {
    fn new() -> Self {
        Self {
            domains: [MaybeUninit::uninit(); HELD_MAX],
            count: 0,
        }
    }

    /// Adds a domain; there are at most [`HELD_MAX`].
    fn push(&mut self, domain: u32) {
        self.domains[self.count].write(domain);
        self.count += 1;
    }

    pub(crate) fn as_slice(&self) -> &[u32] {
        let domains = &self.domains[..self.count];
        // SAFETY: push() has set that many, and numbers may be anything.
        unsafe { std::slice::from_raw_parts(domains.as_ptr().cast(), domains.len()) }
    }
}

/// Whether a domain is on the list.
fn lists(list: Control, domain: u32) -> bool {
    (0..held::len(&list)).any(|place| list.entry(place) == domain)
}

/// How a request is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Milliseconds that it may take, 0 for no limit.
    pub(crate) deadline_ms: u32,
    /// Milliseconds to wait for a domain's lock.
    pub(crate) lock_timeout_ms: u32,
    /// The audit looks at whole domains, not only at what the request has written.
    pub(crate) whole_audit: bool,
}

/// How a request begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) tag: u64,
    /// `CLOCK_MONOTONIC` nanoseconds, or 0 for none.
    pub(crate) deadline: u64,
    pub(crate) limits: Limits,
}

/// The audit looks at whole domains.
const WHOLE_AUDIT: u32 = 1;
/// No thread can join any more.
const CLOSED: u32 = 2;
/// The request has failed: all its threads go to their landings.
const FAILED: u32 = 4;
/// Threads other than the current one may have made drafts.
const WROTE: u32 = 8;

/// See the module's description.
pub(crate) struct State {
    tag: AtomicU64,
    /// The request's tag while no other thread can work for it, since it has no ticket. A stray write can only make
    /// the request use the latch: no other value is the tag.
    alone: AtomicU64,
    /// Protection key of the request's drafts, or of those of the request before; 0 for none.
    key: AtomicU32,
    /// See [`pkru::Key::serial`].
    key_serial: AtomicU32,
    deadline: AtomicU64,
    lock_timeout_ms: AtomicU32,
    /// [`WHOLE_AUDIT`], [`CLOSED`], [`FAILED`], [`WROTE`]; none of the others when there is no
    /// request.
    flags: AtomicU32,
    pub(crate) members: Members,
    pub(crate) latch: Latch,
    /// The control block where the driver reads which domains are held, or null.
    control: AtomicPtr<ThreadControl>,
    /// Counts changes of what is held while a thread waits for one.
    held_changes: AtomicU32,
    /// Threads that wait for such a change.
    held_waiters: AtomicU32,
    lists: UnsafeCell<Lists>,
    /// The newest of the tasks that were dropped in the request, or null.
    dropped: AtomicPtr<State>,
    /// The one that was dropped before this one, or null.
    next_dropped: AtomicPtr<State>,
    /// The next one in the pool, or null.
    next_free: AtomicPtr<State>,
    /// The failure that the first thread that landed has reported; for the others. Only locked at a landing, where no
    /// thread is cut short; the others wait for that report, whose steps have time limits.
    failure: Mutex<Option<Failure>>,
}

// SAFETY: atomics, a mutex, and lists that are used by one thread at a time (the latch, or the only
// thread that the request has). Defers are Send by the contract of their registration.
unsafe impl Send for State {}
// SAFETY: as above.
unsafe impl Sync for State {}

/// States that no request has.
static POOL: Pool = Pool::new();

impl State {
    /// A state that no request has.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when there is no memory.
    pub(crate) fn take() -> Result<&'static Self, Error> {
        if let Some(state) = POOL.take() {
            return Ok(state);
        }
        let memory = Region::new(size_of::<Self>())?;
        let place = memory.place().cast::<Self>();
        std::mem::forget(memory);
        // SAFETY: fresh memory of the right size, page-aligned, that is never given back.
        unsafe {
            place.write(Self::new());
            Ok(place.as_ref())
        }
    }

    /// Gives a state back. If a thread has ended in the middle of the request, others may still work for it and
    /// have its key open: then neither is reused.
    pub(crate) fn give_back(&'static self) {
        if self.tag() != 0 {
            return;
        }
        POOL.put(self);
    }

    fn new() -> Self {
        Self {
            tag: AtomicU64::new(0),
            alone: AtomicU64::new(0),
            key: AtomicU32::new(0),
            key_serial: AtomicU32::new(0),
            deadline: AtomicU64::new(0),
            lock_timeout_ms: AtomicU32::new(0),
            flags: AtomicU32::new(0),
            members: Members::new(),
            latch: Latch::default(),
            control: AtomicPtr::new(ptr::null_mut()),
            held_changes: AtomicU32::new(0),
            held_waiters: AtomicU32::new(0),
            lists: UnsafeCell::new(Lists {
                domains: [None; HELD_MAX],
                used: 0,
                quarantine: Ring::new(),
                recent: Ring::new(),
                defers: Vec::with_capacity(DEFERS_MAX),
            }),
            dropped: AtomicPtr::new(ptr::null_mut()),
            next_dropped: AtomicPtr::new(ptr::null_mut()),
            next_free: AtomicPtr::new(ptr::null_mut()),
            failure: Mutex::new(None),
        }
    }

    /// A request begins, which holds nothing yet, and uses the control block's list; no other thread knows it yet. The
    /// state is as [`State::clear`] leaves it. Returns the number of the request's protection key.
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    pub(crate) fn begin(&self, start: Start, ours: pkru::Ours, control: Control) -> u32 {
        let mut key = self.key_and_serial();
        if !pkru::take_again(ours, key) {
            key = self.take_other_key();
        }
        let limits = start.limits;
        self.deadline.store(start.deadline, Ordering::Relaxed);
        self.lock_timeout_ms
            .store(limits.lock_timeout_ms, Ordering::Relaxed);
        let flags = if limits.whole_audit { WHOLE_AUDIT } else { 0 };
        self.flags.store(flags, Ordering::Relaxed);
        self.alone.store(start.tag, Ordering::Relaxed);
        let block = control.block().as_ptr();
        self.control.store(block, Ordering::Relaxed);
        // Nobody has the new tag before the first ticket, which is handed over in order.
        self.tag.store(start.tag, Ordering::Release);
        key.number
    }

    #[cold]
    fn take_other_key(&self) -> pkru::Key {
        let key = pkru::take_other(self.key());
        self.set_key(key);
        key
    }

    #[inline]
    fn key_and_serial(&self) -> pkru::Key {
        pkru::Key {
            number: self.key.load(Ordering::Relaxed),
            serial: self.key_serial.load(Ordering::Relaxed),
        }
    }

    #[inline]
    fn set_key(&self, key: pkru::Key) {
        self.key.store(key.number, Ordering::Relaxed);
        self.key_serial.store(key.serial, Ordering::Relaxed);
    }

    /// Whether the request with that tag is alone with that domain, has nothing but pages of it to commit or to undo, and
    /// is as the library has left it, but for the domain's lock word. Without a latch: a request that is not alone is not
    /// plain either.
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    pub(crate) fn is_plain(&self, tag: u64, domain: &Domain, control: Control) -> bool {
        // SAFETY: as long as the request is alone, no other thread writes these.
        let (own_tag, flags, latch, list, dropped) = unsafe {
            (
                self.tag.as_ptr().read(),
                self.flags.as_ptr().read(),
                self.latch.peek(),
                self.control.as_ptr().read(),
                self.dropped.as_ptr().read(),
            )
        };
        self.alone.load(Ordering::Relaxed) == tag
            && own_tag == tag
            && (flags & !WHOLE_AUDIT) | latch == 0
            && list == control.block().as_ptr()
            && control.lists_only(domain.number())
            && self.lists(|lists| lists.is_plain(domain, dropped.addr()))
    }

    /// Ends a request that is plain, and whose domain is unlocked: what it has used is as [`State::clear`] leaves it.
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    pub(crate) fn clear_plain(&self, ours: pkru::Ours) {
        // Nobody can look for the tag: there was no ticket.
        self.tag.store(0, Ordering::Release);
        self.lists(|lists| lists.used = 0);
        if !ours.are_none() {
            let key = pkru::give_back(self.key_and_serial());
            self.key_serial.store(key.serial, Ordering::Relaxed);
        }
    }

    /// The request is over, and has no thread any more.
    ///
    /// `kept`: it was audited and committed. Otherwise a stray write may have changed the count of the
    /// domains, so all places are emptied: nothing of this request may leak into the next one.
    pub(crate) fn clear(&self, kept: bool) {
        self.flags.fetch_or(CLOSED, Ordering::SeqCst);
        self.tag.store(0, Ordering::SeqCst);
        self.deadline.store(0, Ordering::Relaxed);
        self.set_key(pkru::give_back(self.key_and_serial()));
        self.drop_control();
        self.lists(|lists| {
            let used = if kept {
                lists.used.min(HELD_MAX)
            } else {
                HELD_MAX
            };
            lists.domains[..used].fill(None);
            lists.used = 0;
            lists.quarantine.restart();
            lists.recent.restart();
        });
        // A thread that was cut short may have left the latch taken, or itself counted as a waiter.
        self.latch.reset();
        self.held_waiters.store(0, Ordering::Relaxed);
        if !kept {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        // After the tag: see is_open().
        self.flags.store(0, Ordering::SeqCst);
    }

    /// Whether the state is as [`State::begin`] expects it.
    #[cfg(test)]
    pub(crate) fn is_at_rest(&self) -> bool {
        self.tag() == 0
            && self.flags.load(Ordering::SeqCst) & !WHOLE_AUDIT == 0
            && self.deadline() == 0
            && self.latch.is_free()
            && self.members.is_empty()
            && self.dropped.load(Ordering::SeqCst).is_null()
            && self.lists(|lists| {
                lists.used == 0
                    && lists.quarantine.is_unused()
                    && lists.recent.is_unused()
                    && lists.defers.is_empty()
            })
    }

    /// The request's tag, or 0 when there is none.
    #[inline]
    pub(crate) fn tag(&self) -> u64 {
        self.tag.load(Ordering::SeqCst)
    }

    pub(crate) fn key(&self) -> u32 {
        self.key.load(Ordering::Relaxed)
    }

    pub(crate) fn deadline(&self) -> u64 {
        self.deadline.load(Ordering::Relaxed)
    }

    pub(crate) fn lock_timeout_ms(&self) -> u32 {
        self.lock_timeout_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn wants_whole_audit(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & WHOLE_AUDIT != 0
    }

    // Joining and ending.

    /// Whether no other thread can work for the request: its lists need no latch.
    pub(crate) fn is_alone(&self) -> bool {
        let tag = self.tag();
        tag != 0 && self.alone.load(Ordering::Relaxed) == tag
    }

    /// Other threads may join from here on. The caller holds the latch if it is in the lists.
    pub(crate) fn share(&self) {
        self.alone.store(0, Ordering::SeqCst);
    }

    /// Whether the request has that tag and a thread may join it. Asked after a slot was taken.
    pub(crate) fn is_open(&self, tag: u64) -> bool {
        // In this order: the flags of a request that is over are taken back after its tag.
        self.flags.load(Ordering::SeqCst) & (CLOSED | FAILED) == 0 && self.tag() == tag
    }

    /// Closes the request to new members, and waits for those that have joined. False if a thread ended without
    /// leaving.
    pub(crate) fn close(&self, sweep: fn(&Members) -> bool) -> bool {
        if self.is_alone() {
            self.flags.fetch_or(CLOSED, Ordering::Relaxed);
            return true;
        }
        let all_left = self.members.wait(sweep);
        self.flags.fetch_or(CLOSED, Ordering::SeqCst);
        // A thread that joined in between is seen now, or sees that it is closed.
        self.members.wait(sweep) && all_left
    }

    /// Threads may join again: the request goes on.
    pub(crate) fn reopen(&self) {
        self.flags.fetch_and(!CLOSED, Ordering::SeqCst);
    }

    /// The request fails: all its threads go to their landings, and one of them must report it.
    pub(crate) fn mark_failed(&self) {
        self.flags.fetch_or(FAILED, Ordering::SeqCst);
    }

    /// Async-signal-safe.
    pub(crate) fn has_failed(&self) -> bool {
        self.flags.load(Ordering::SeqCst) & FAILED != 0
    }

    /// The failure: `fail` reports it, the first time.
    pub(crate) fn fail(&self, fail: impl FnOnce() -> Failure) -> Failure {
        self.mark_failed();
        if self.is_alone() {
            return fail();
        }
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(fail).clone()
    }

    /// Notes that threads other than the present one may have made drafts.
    pub(crate) fn note_drafts(&self) {
        self.flags.fetch_or(WROTE, Ordering::SeqCst);
    }

    pub(crate) fn may_have_drafts(&self) -> bool {
        self.flags.load(Ordering::SeqCst) & WROTE != 0
    }

    // The lists.

    /// Callers have the latch, or are the request's only thread.
    #[inline]
    fn lists<T>(&self, use_them: impl FnOnce(&mut Lists) -> T) -> T {
        // SAFETY: one thread at a time by the callers' contract, and no closure here calls another.
        use_them(unsafe { &mut *self.lists.get() })
    }

    /// From here on the request uses the control block's list: what is held already is entered.
    pub(crate) fn set_control(&self, control: Control) {
        control.set_count(0);
        self.lists(|lists| {
            for held in lists.held() {
                held::push(&control, held.domain.number());
            }
        });
        self.control
            .store(control.block().as_ptr(), Ordering::SeqCst);
    }

    fn control(&self) -> Option<Control> {
        let block = NonNull::new(self.control.load(Ordering::SeqCst))?;
        // SAFETY: the thread that it belongs to leaves the request last.
        Some(unsafe { Control::new(block) })
    }

    /// The thread that had the list is about to leave; the backend has taken the list over.
    pub(crate) fn drop_control(&self) {
        self.control.store(ptr::null_mut(), Ordering::SeqCst);
    }

    /// Domains held, and those whose locks are being taken, in the order of their locking.
    /// Does not allocate.
    pub(crate) fn held(&self) -> HeldDomains {
        let mut held = HeldDomains::new();
        if let Some(control) = self.control() {
            (0..held::len(&control)).for_each(|place| held.push(control.entry(place)));
        }
        held
    }

    /// Notes a domain whose lock is taken next.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyHeld`], [`Error::Limit`].
    pub(crate) fn push_held(&self, domain: u32) -> Result<(), Error> {
        let control = self.control().ok_or(Error::NotInRequest)?;
        if (0..held::len(&control)).any(|place| control.entry(place) == domain) {
            return Err(Error::AlreadyHeld);
        }
        if held::push(&control, domain) {
            Ok(())
        } else {
            Err(Error::Limit("32 held domains"))
        }
    }

    /// Forgets a domain whose lock the request no longer has.
    pub(crate) fn remove_held(&self, domain: u32) {
        if let Some(control) = self.control() {
            held::remove(&control, domain);
        }
        self.notify_held();
    }

    /// Domains on the control block's list.
    pub(crate) fn listed(&self) -> usize {
        self.control().map_or(0, |control| held::len(&control))
    }

    /// The one at a place below that.
    pub(crate) fn listed_at(&self, place: usize) -> Option<u32> {
        (place < self.listed()).then(|| self.control().map(|control| control.entry(place)))?
    }

    /// The newest domain that is held. Nobody else works for the request.
    pub(crate) fn newest_held(&self) -> Option<u32> {
        let control = self.control()?;
        Some(control.entry(held::len(&control).checked_sub(1)?))
    }

    /// Forgets the newest domain, whose lock the request no longer has. Nobody else works for the request.
    pub(crate) fn remove_newest_held(&self) {
        if let Some(control) = self.control() {
            control.set_count(held::len(&control).saturating_sub(1) as u32);
        }
    }

    /// What is held, or waited for, has changed; under the latch, so that a waiter either is counted
    /// by now or sees the change.
    fn notify_held(&self) {
        if self.held_waiters.load(Ordering::SeqCst) != 0 {
            self.held_changes.fetch_add(1, Ordering::SeqCst);
            futex::wake_all(&self.held_changes);
        }
    }

    /// Sleeps until another thread of the request holds a domain, or no longer waits for one, unless
    /// `over`. Wakes spuriously at times, and always after [`HELD_PATIENCE`]. The caller does not have the latch.
    pub(crate) fn wait_for_held(&self, over: impl FnOnce() -> bool) {
        self.held_waiters.fetch_add(1, Ordering::SeqCst);
        let changes = self.held_changes.load(Ordering::SeqCst);
        if !over() {
            // An error counts as a wake-up.
            let _ = futex::wait(&self.held_changes, changes, HELD_PATIENCE);
        }
        self.held_waiters.fetch_sub(1, Ordering::SeqCst);
    }

    /// Threads in [`State::wait_for_held`].
    #[cfg(test)]
    pub(crate) fn held_waiters(&self) -> u32 {
        self.held_waiters.load(Ordering::SeqCst)
    }

    /// Whether the domain is on the list: held, or waited for, by a thread of the request.
    pub(crate) fn lists_held(&self, domain: u32) -> bool {
        self.control().is_some_and(|list| lists(list, domain))
    }

    /// Whether the request has taken the domain's lock.
    pub(crate) fn holds(&self, domain: &Domain) -> bool {
        self.find(domain).is_some()
    }

    fn find(&self, domain: &Domain) -> Option<Held> {
        self.lists(|lists| {
            let mut held = lists.held();
            held.find(|held| ptr::eq(held.domain, domain)).copied()
        })
    }

    /// The domain at a place below [`State::places`]; places stay while a domain is held.
    pub(crate) fn domain_at(&self, place: usize) -> Option<&'static Domain> {
        self.lists(|lists| lists.domains.get(place)?.map(|held| held.domain))
    }

    /// Whether the first domain of a request that is plain has a heap.
    pub(crate) fn first_has_heap(&self) -> bool {
        self.lists(|lists| lists.domains[0].is_some_and(|held| held.has_heap))
    }

    /// Places of [`State::domain_at`] from here on are empty.
    pub(crate) fn places(&self) -> usize {
        self.lists(|lists| lists.used.min(HELD_MAX))
    }

    /// Whether the request holds more than one domain.
    pub(crate) fn holds_several(&self) -> bool {
        self.lists(|lists| lists.used > 1 && lists.held().nth(1).is_some())
    }

    /// The domains whose locks are taken.
    pub(crate) fn domains(&self) -> HeldDomains {
        let mut copy = HeldDomains::new();
        self.lists(|lists| {
            for held in lists.held() {
                copy.push(held.domain.number());
            }
        });
        copy
    }

    /// Notes a domain whose lock the request has taken.
    pub(crate) fn note_domain(&self, domain: &'static Domain, has_heap: bool) {
        self.lists(|lists| {
            // The rest of the places are free, whatever was in them before.
            let used = lists.used.min(HELD_MAX);
            let free = lists.domains[..used].iter().position(Option::is_none);
            let free = free.unwrap_or(used);
            if free < HELD_MAX {
                lists.used = used.max(free + 1);
                lists.domains[free] = Some(Held { domain, has_heap });
            }
        });
        self.notify_held();
    }

    /// Notes the first domain of a request that is alone.
    #[inline]
    pub(crate) fn note_first(&self, domain: &'static Domain, has_heap: bool) {
        self.lists(|lists| {
            lists.domains[0] = Some(Held { domain, has_heap });
            lists.used = 1;
        });
    }

    /// Forgets a domain that the request holds; says whether it has a heap, or `None` if it is not
    /// held.
    pub(crate) fn forget_domain(&self, domain: &Domain) -> Option<bool> {
        self.lists(|lists| {
            let place = lists
                .domains
                .iter_mut()
                .take(lists.used)
                .find(|place| place.is_some_and(|held| ptr::eq(held.domain, domain)))?;
            place.take().map(|held| held.has_heap)
        })
    }

    /// Notes that a domain that the request holds has a heap.
    pub(crate) fn note_heap(&self, domain: &Domain) {
        self.lists(|lists| {
            for held in lists.held_mut() {
                held.has_heap |= ptr::eq(held.domain, domain);
            }
        });
    }

    /// Whether a domain that the request holds had a heap when the request took it, or got one since.
    fn has_heap(&self, domain: &Domain) -> bool {
        self.find(domain).is_some_and(|held| held.has_heap)
    }

    /// The heap of a domain that the request holds.
    pub(crate) fn heap(&self, domain: &Domain) -> Heap {
        domain.heap(self.has_heap(domain))
    }

    /// Blocks that the request has freed.
    pub(crate) fn quarantine(&self) -> &Ring<QUARANTINE> {
        // SAFETY: the field's address alone; the ring is used under the latch.
        unsafe { &(*self.lists.get()).quarantine }
    }

    /// Blocks that the request has taken.
    pub(crate) fn recent(&self) -> &Ring<RECENT> {
        // SAFETY: as above.
        unsafe { &(*self.lists.get()).recent }
    }

    /// Whether the list in the control block and the lock words are as the request knows them. Another
    /// of its threads may be taking a lock at the moment.
    pub(crate) fn is_intact(&self) -> bool {
        let (tag, control) = (self.tag(), self.control());
        let listed = control.as_ref().map_or(0, held::len);
        let is_listed = |domain| {
            control.is_some_and(|list| (0..listed).any(|place| list.entry(place) == domain))
        };
        self.lists(|lists| {
            let mut count = 0;
            for held in lists.held() {
                count += 1;
                if held.domain.holder() != tag || !is_listed(held.domain.number()) {
                    return false;
                }
            }
            count == listed || (count < listed && !self.members.is_empty())
        })
    }

    /// Enters all domains in the control block's list again if one is missing there. The caller has the
    /// latch, or is the request's only thread.
    pub(crate) fn repair_control(&self) {
        let Some(control) = self.control() else {
            return;
        };
        self.lists(|noted| {
            if noted
                .held()
                .all(|held| lists(control, held.domain.number()))
            {
                return;
            }
            // A domain that is entered but not noted yet is not locked, or the driver knows it as written.
            control.set_count(0);
            for held in noted.held() {
                held::push(&control, held.domain.number());
            }
        });
    }

    // Defers.

    /// Takes it, if there is room.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`].
    pub(crate) fn defer(&self, deferred: &mut Option<Deferred>) -> Result<(), Error> {
        self.lists(|lists| {
            if lists.defers.len() >= DEFERS_MAX {
                return Err(Error::Limit("256 defers"));
            }
            lists.defers.extend(deferred.take());
            Ok(())
        })
    }

    pub(crate) fn newest_defer(&self) -> Option<Deferred> {
        self.lists(|lists| lists.defers.pop())
    }

    /// How many there are.
    pub(crate) fn defers(&self) -> usize {
        self.lists(|lists| lists.defers.len())
    }

    /// Moves all defers to `all`. Does not allocate if that has room for them.
    pub(crate) fn take_defers(&self, all: &mut Vec<Deferred>) {
        self.lists(|lists| all.append(&mut lists.defers));
    }

    // Tasks that a thread of the request has dropped.

    /// Takes the state of such a task, which is over: its remaining defers are run when the request ends,
    /// unless the thread that drops it runs them. Async-signal-safe.
    pub(crate) fn adopt(&self, dropped: &'static Self) {
        let mut first = self.dropped.load(Ordering::Relaxed);
        loop {
            dropped.next_dropped.store(first, Ordering::Relaxed);
            let place = ptr::from_ref(dropped).cast_mut();
            match self.dropped.compare_exchange_weak(
                first,
                place,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => first = now,
            }
        }
    }

    /// The states of tasks that were dropped in the request, newest first; each must be given back.
    pub(crate) fn take_dropped(&self) -> impl Iterator<Item = &'static Self> {
        let mut next = self.dropped.swap(ptr::null_mut(), Ordering::Acquire);
        std::iter::from_fn(move || {
            // SAFETY: null, or a state, which lives forever; on no other list.
            let state: &'static Self = unsafe { next.as_ref() }?;
            next = state.next_dropped.swap(ptr::null_mut(), Ordering::Relaxed);
            Some(state)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::MockBackend;
    use crate::{Kind, RunError, thread};

    #[test]
    fn corrupted_lists_leave_nothing_to_the_next_request() {
        let app = MockBackend::app("lists that lie", |_| ());
        let [one, two] = ["one", "two"].map(|key| app.domain(key).unwrap());
        let outcome = one.run(|request| {
            request.enter(two)?.keep();
            let block = two.allocate(100, 16)?;
            // SAFETY: live, and used no more.
            unsafe { two.deallocate(block)? };
            let state = thread::current().unwrap().state();
            // As a stray write may.
            state.lists(|lists| {
                lists.used = 0;
                lists.quarantine.set_next(0);
                lists.recent.set_next(0);
            });
            request.fail("this request fails")
        });
        let outcome: Result<(), RunError<Error>> = outcome;
        assert!(
            matches!(outcome, Err(RunError::Failed(failure)) if failure.kind == Kind::Invariant)
        );
        let state = thread::of(app).unwrap().state();
        state.lists(|lists| assert!(lists.domains.iter().all(Option::is_none)));
        let next = one.run(|_| {
            let tag = state.tag();
            state.lists(|lists| {
                assert!((0..QUARANTINE).all(|place| lists.quarantine.get(tag, place).is_none()));
                assert!((0..RECENT).all(|place| lists.recent.get(tag, place).is_none()));
            });
            Ok::<_, Error>(())
        });
        next.unwrap();
        assert_eq!(two.holder(), 0);
    }
}
