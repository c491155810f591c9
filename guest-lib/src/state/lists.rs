//! What a request holds and has used, as its threads know it.

use super::State;
use super::deferred::Deferred;
use super::domain::Domain;
use super::held::HeldDomains;
use super::kept::Kept;
use super::on_commit::OnCommit;
use super::ring::Ring;
use crate::heap::Heap;
use std::ptr;
use vmsrs_protocol::shared::HELD_MAX;

/// Blocks that a request can free before the oldest goes back to the heap.
pub(crate) const QUARANTINE: usize = 256;

/// Newest blocks of a request that the audit looks at in a big domain.
pub(crate) const RECENT: usize = 64;

/// A domain that the request holds.
#[derive(Clone, Copy)]
pub(super) struct Held {
    pub(super) domain: &'static Domain,
    /// It had a heap when the request took it, or got one since. Kept outside the domain, where a
    /// request's stray write cannot make a damaged heap look like a new domain.
    pub(super) has_heap: bool,
}

/// Guarded by the latch as soon as the request can have more than one thread.
pub(super) struct Lists {
    /// Domains whose locks are taken.
    pub(super) domains: [Option<Held>; HELD_MAX],
    /// Places of `domains` from here on were not used by this request: most requests use one, and need not
    /// scan them all.
    pub(super) used: usize,
    pub(super) quarantine: Ring<QUARANTINE>,
    pub(super) recent: Ring<RECENT>,
    pub(super) defers: Vec<Deferred>,
    pub(super) on_commit: OnCommit,
    pub(super) kept: Kept,
}

impl Lists {
    pub(super) fn held(&self) -> impl Iterator<Item = &Held> + Clone {
        self.domains.iter().take(self.used).flatten()
    }

    /// Whether that domain alone is on the lists, and on no others; `more` is 0 if these are empty.
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    pub(super) fn is_plain(&self, domain: &Domain, more: usize) -> bool {
        let others = self.quarantine.noted() | self.recent.noted() | self.defers.len() | more;
        others == 0
            && self.used == 1
            && self.domains[0].is_some_and(|held| ptr::eq(held.domain, domain))
    }

    fn held_mut(&mut self) -> impl Iterator<Item = &mut Held> {
        self.domains.iter_mut().take(self.used).flatten()
    }
}

impl State {
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
}
