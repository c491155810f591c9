//! The list of domains in the control block, which the driver reads: held, or about to be locked.

use super::State;
use crate::error::Error;
use crate::os::futex;
use crate::shared::control::Control;
use crate::shared::held::{self, HeldList};
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering;
use std::time::Duration;
use vmsrs_protocol::shared::HELD_MAX;

/// How long a thread that waits for another one's domain sleeps before it checks whether to give up.
const HELD_PATIENCE: Duration = Duration::from_millis(10);

/// A copy of a request's list of domains.
#[derive(Debug)]
pub(crate) struct HeldDomains {
    /// The first `count` of them are set: most requests hold one domain, and need not fill the rest.
    domains: [MaybeUninit<u32>; HELD_MAX],
    count: usize,
}

impl HeldDomains {
    pub(super) fn new() -> Self {
        Self {
            domains: [MaybeUninit::uninit(); HELD_MAX],
            count: 0,
        }
    }

    /// Adds a domain; there are at most [`HELD_MAX`].
    pub(super) fn push(&mut self, domain: u32) {
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

impl State {
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

    pub(super) fn control(&self) -> Option<Control> {
        let block = NonNull::new(self.control.load(Ordering::SeqCst))?;
        // SAFETY: the thread that it belongs to leaves the request last.
        Some(unsafe { Control::new(block) })
    }

    /// The thread that had the list is about to leave; the backend has taken the list over.
    pub(crate) fn drop_control(&self) {
        self.control.store(ptr::null_mut(), Ordering::SeqCst);
    }

    /// Calls `code` with the domains that are held, and those whose locks are being taken, in the order of their locking.
    /// Does not allocate, nor copy the list, which is long.
    pub(crate) fn with_held<T>(&self, code: impl FnOnce(&[u32]) -> T) -> T {
        let mut held = HeldDomains::new();
        if let Some(control) = self.control() {
            (0..held::len(&control)).for_each(|place| held.push(control.entry(place)));
        }
        code(held.as_slice())
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
            Err(Error::Limit("256 held domains"))
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
    pub(super) fn notify_held(&self) {
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
}
