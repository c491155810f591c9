//! What a process knows of deleted domains.
//!
//! A number of a deleted domain becomes another one's when all processes of the app have noted the deletion: by then they
//! refuse what they have opened under it. The driver lists deletions, which are numbered in the app.

use crate::error::Error;
use crate::os::lock::Lock;
use crate::os::region::Region;
use crate::shared::backend::Backend;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use vmsrs_protocol::MAX_DOMAINS;

/// Domains that are listed at a time.
const LISTED: usize = 64;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Deletions<D: 'static> {
    /// The domains that are open, by number. They take memory when the first one of 512 neighbours is.
    open: NonNull<AtomicPtr<D>>,
    /// Number of the last deletion that was looked at, or is being looked at.
    noted: AtomicU64,
    lock: Lock<()>,
}

// SAFETY: atomics, which live as long as the process.
unsafe impl<D: Sync> Send for Deletions<D> {}
// SAFETY: as above.
unsafe impl<D: Sync> Sync for Deletions<D> {}

impl<D: 'static> Deletions<D> {
    /// # Errors
    ///
    /// [`Error::System`] when there is no memory.
    pub(super) fn new() -> Result<Self, Error> {
        let memory = Region::new(MAX_DOMAINS as usize * size_of::<AtomicPtr<D>>())?;
        let open = memory.place().cast();
        std::mem::forget(memory);
        Ok(Self {
            open,
            noted: AtomicU64::new(0),
            lock: Lock::new(()),
        })
    }

    fn slot(&self, number: u32) -> Option<&AtomicPtr<D>> {
        // SAFETY: below the number of slots, in memory that is never given back; zeros are null pointers.
        (number < MAX_DOMAINS).then(|| unsafe { self.open.add(number as usize).as_ref() })
    }

    /// Notes that a domain is open under that number, which was found after that deletion. False if it may have been deleted since, without
    /// being marked: later deletions were looked at when it was not known.
    pub(super) fn know(&self, number: u32, domain: &'static D, deletions: u64) -> bool {
        if let Some(slot) = self.slot(number) {
            let place = std::ptr::from_ref(domain).cast_mut();
            slot.store(place, Ordering::SeqCst);
        }
        // Either this finds what note() has stored, or that finds the domain.
        self.noted.load(Ordering::SeqCst) <= deletions
    }

    /// Runs code of the library that one thread at a time may run.
    pub(super) fn alone(&self, code: impl FnOnce()) {
        self.lock.with(|()| code());
    }

    /// Calls `forget` for the domains that are open and were deleted, up to that deletion, and tells the backend. Where that is
    /// not possible, their numbers stay unused.
    pub(super) fn note(&self, backend: &dyn Backend, last: u64, forget: impl Fn(&'static D)) {
        if self.noted.load(Ordering::SeqCst) >= last {
            return;
        }
        self.alone(|| {
            let mut numbers = [0; LISTED];
            let mut noted = self.noted.load(Ordering::SeqCst);
            // The call after the last one says that all is noted.
            while let Ok((count, until)) = backend.deleted(noted, &mut numbers) {
                self.noted.fetch_max(until, Ordering::SeqCst);
                for &number in &numbers[..count] {
                    let slot = self.slot(number);
                    let domain = slot.map(|slot| slot.load(Ordering::SeqCst));
                    // SAFETY: null, or a domain, which lives as long as the process.
                    if let Some(domain) = domain.and_then(|domain| unsafe { domain.as_ref() }) {
                        forget(domain);
                    }
                }
                if until == noted {
                    return;
                }
                noted = until;
            }
        });
    }
}
