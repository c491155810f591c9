//! The state of a request, shared by its threads.
//!
//! States are never unmapped: a ticket may outlive its request, and finds another tag then, or none.

pub(crate) mod budget;
pub(crate) mod check;
pub(crate) mod deferred;
mod deleted;
mod directory;
pub(crate) mod domain;
mod dropped;
mod held;
mod joining;
mod kept;
mod key;
mod list_memory;
mod lists;
pub(crate) mod members;
pub(crate) mod on_commit;
mod pool;
pub(crate) mod ring;
pub(crate) mod slots;

use crate::failure::Reported;
use crate::os::latch::Latch;
use crate::shared::control::Control;
use crate::shared::pkru;
use deferred::DEFERS_MAX;
use domain::Domain;
use joining::CLOSED;
use kept::Kept;
use lists::Lists;
pub(crate) use lists::{QUARANTINE, RECENT};
use members::Members;
use on_commit::OnCommit;
use ring::Ring;
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use vmsrs_protocol::shared::{HELD_MAX, ThreadControl};

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

/// See the module's description.
pub(crate) struct State {
    tag: AtomicU64,
    /// The request's tag while no other thread can work for it, since it has no ticket. A stray write can only make
    /// the request use the latch: no other value is the tag.
    alone: AtomicU64,
    /// Protection key of the request's drafts, or of those of the request before; 0 for none.
    key: AtomicU32,
    /// See [`pkru::Key::free`].
    key_free: AtomicU64,
    deadline: AtomicU64,
    lock_timeout_ms: AtomicU32,
    /// The audit looks at whole domains.
    whole_audit: AtomicBool,
    /// [`CLOSED`] and what else `joining.rs` has; nothing when there is no request.
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
    /// thread is cut short; the others wait for that report, which needs no heap.
    failure: Mutex<Option<Reported>>,
}

// SAFETY: atomics, a mutex, and lists that are used by one thread at a time (the latch, or the only
// thread that the request has). Defers are Send by the contract of their registration.
unsafe impl Send for State {}
// SAFETY: as above.
unsafe impl Sync for State {}

impl State {
    fn new() -> Self {
        Self {
            tag: AtomicU64::new(0),
            alone: AtomicU64::new(0),
            key: AtomicU32::new(0),
            key_free: AtomicU64::new(0),
            deadline: AtomicU64::new(0),
            lock_timeout_ms: AtomicU32::new(0),
            whole_audit: AtomicBool::new(false),
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
                on_commit: OnCommit::new(),
                kept: Kept::new(),
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
        let mut key = self.last_key();
        if !pkru::take_again(ours, key) {
            key = self.take_other_key();
        }
        let limits = start.limits;
        self.deadline.store(start.deadline, Ordering::Relaxed);
        self.lock_timeout_ms
            .store(limits.lock_timeout_ms, Ordering::Relaxed);
        self.whole_audit
            .store(limits.whole_audit, Ordering::Relaxed);
        self.alone.store(start.tag, Ordering::Relaxed);
        let block = control.block().as_ptr();
        self.control.store(block, Ordering::Relaxed);
        // Nobody has the new tag before the first ticket, which is handed over in order.
        self.tag.store(start.tag, Ordering::Release);
        key.number
    }

    /// Whether the request with that tag is alone with that domain, and has nothing but pages of it to commit or to undo; and
    /// whether what its end depends on is as the library has left it, but for the domain's lock word. Without a latch: a
    /// request that is not alone is not plain either.
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    pub(crate) fn is_plain(&self, tag: u64, domain: &Domain, control: Control) -> bool {
        // SAFETY: as long as the request is alone, no other thread writes these.
        let (flags, latch, dropped) = unsafe {
            (
                self.flags.as_ptr().read(),
                self.latch.peek(),
                self.dropped.as_ptr().read(),
            )
        };
        let more = dropped.addr() | (flags | latch) as usize;
        self.alone.load(Ordering::Relaxed) == tag
            && control.key() == self.key()
            && control.lists_only(domain.number())
            && self.lists(|lists| lists.is_plain(domain, more))
    }

    /// Ends a request that is plain, and whose domain is unlocked: what it has used is as [`State::clear`] leaves it.
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    pub(crate) fn clear_plain(&self) {
        // Nobody can look for the tag: there was no ticket.
        self.tag.store(0, Ordering::Release);
        self.lists(|lists| lists.used = 0);
        let key = pkru::give_back(self.last_key());
        self.key_free.store(key.free, Ordering::Relaxed);
    }

    /// The request is over, and has no thread any more.
    ///
    /// `kept`: it was audited and committed.
    pub(crate) fn clear(&self, kept: bool) {
        self.flags.fetch_or(CLOSED, Ordering::SeqCst);
        self.tag.store(0, Ordering::SeqCst);
        self.deadline.store(0, Ordering::Relaxed);
        self.end_key();
        self.drop_control();
        self.lists(|lists| {
            // Places from here on are written before they are read.
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
            && self.flags.load(Ordering::SeqCst) == 0
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
        self.whole_audit.load(Ordering::Relaxed)
    }

    /// Callers have the latch, or are the request's only thread.
    #[inline]
    fn lists<T>(&self, use_them: impl FnOnce(&mut Lists) -> T) -> T {
        // SAFETY: one thread at a time by the callers' contract, and no closure here calls another.
        use_them(unsafe { &mut *self.lists.get() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::MockBackend;
    use crate::{Error, Kind, RunError, thread};

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
        state.lists(|lists| assert_eq!(lists.held().count(), 0));
        let next = one.run(|_| {
            let tag = state.tag();
            assert!(state.holds(one) && !state.holds(two));
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
