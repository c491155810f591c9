//! Domains: the unit of ownership, with a heap, a root pointer and a lock.

use crate::api::app::App;
use crate::api::request::{Options, Request};
use crate::error::{Error, RunError};
use crate::heap::layout::{DomainHeader, FINGERPRINT, MAGIC};
use crate::heap::{Damage, Heap};
use crate::run::invariant::Invariant;
use crate::run::{self, End, Stop};
use crate::shared::pkru;
use crate::state::ring::Noted;
use crate::thread::{self, Thread};
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use vmsrs_protocol::control::{DOMAIN_DAMAGED, DOMAIN_MIRROR, Extent};
use vmsrs_protocol::{EXTENT_UNIT_PAGES, PAGE_SIZE};

/// How a domain is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainOptions {
    /// The host keeps a second copy of each sealed page, and repairs from it a page whose memory went
    /// wrong. The copies take as much room of the window as the pages. A domain that has a mirror
    /// keeps it, whoever opens it.
    pub mirror: bool,
}

/// A domain, open in this process for as long as it lives.
///
/// All processes that open the app find the domain at the same addresses, so pointers inside of it
/// stay good.
pub struct Domain {
    app: &'static App,
    number: u32,
    first: Extent,
    header: NonNull<DomainHeader>,
    invariant: Invariant,
}

// SAFETY: the header's memory is guarded by the domain's lock; the rest never changes.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl fmt::Debug for Domain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Domain")
            .field("number", &self.number)
            .field("address", &self.header)
            .finish_non_exhaustive()
    }
}

impl Domain {
    /// Finds or makes the domain with that key (1 to 64 bytes).
    pub(crate) fn open(
        app: &'static App,
        key: &[u8],
        options: DomainOptions,
    ) -> Result<Self, Error> {
        let backend = app.backend();
        let flags = if options.mirror { DOMAIN_MIRROR } else { 0 };
        let (number, flags) =
            backend
                .open_domain(key, flags)
                .map_err(|error| match error.raw_os_error() {
                    Some(libc::ENOSPC) => Error::OutOfMemory {
                        size: (EXTENT_UNIT_PAGES * PAGE_SIZE) as usize,
                    },
                    _ => Error::system("opening the domain")(error),
                })?;
        if flags & DOMAIN_DAMAGED != 0 {
            return Err(Error::Damaged { domain: number });
        }
        let first = backend
            .extent(number, 0, EXTENT_UNIT_PAGES)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ENOMEM | libc::ENOSPC) => Error::OutOfMemory {
                    size: (EXTENT_UNIT_PAGES * PAGE_SIZE) as usize,
                },
                _ => Error::system("making the domain's first extent")(error),
            })?;
        let address = app.base() + u64::from(first.page) * u64::from(PAGE_SIZE);
        let header = NonNull::new(address as *mut DomainHeader)
            .ok_or(Error::Argument("the domain's address"))?;
        let domain = Self {
            app,
            number,
            first,
            header,
            invariant: Invariant::default(),
        };
        domain.check_layout()?;
        Ok(domain)
    }

    /// Refuses a domain whose heap this library does not understand. Returns whether there is a heap:
    /// a new domain has none.
    pub(crate) fn check_layout(&self) -> Result<bool, Error> {
        let header = self.header.as_ptr();
        // SAFETY: the domain's first page is mapped; another process may write it meanwhile, hence
        // volatile. A new domain is all zero.
        let (magic, found) = unsafe {
            (
                (&raw const (*header).magic).read_volatile(),
                (&raw const (*header).fingerprint).read_volatile(),
            )
        };
        if magic == MAGIC && found != FINGERPRINT {
            return Err(Error::Layout {
                found,
                expected: FINGERPRINT,
            });
        }
        Ok(magic != 0)
    }

    /// The app.
    #[must_use]
    pub fn app(&self) -> &'static App {
        self.app
    }

    /// The domain's number in its app, as the host's tools print it.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn invariant(&self) -> &Invariant {
        &self.invariant
    }

    pub(crate) fn lock_word(&self) -> &AtomicU64 {
        self.app.backend().lock_word(self.number)
    }

    /// The heap; the calling thread's request holds the domain.
    pub(crate) fn heap(&self, thread: &Thread) -> Heap {
        let made = thread.state().has_heap(self);
        // SAFETY: open() got header and extent from the backend; callers hold the domain.
        unsafe { Heap::new(self.header, self.app.base(), self.number, made) }
    }

    /// A copy of the heap's own bookkeeping at this moment.
    #[cfg(test)]
    pub(crate) fn bookkeeping(&self) -> Vec<u64> {
        let words = self.header.as_ptr().cast::<u64>();
        // SAFETY: the domain's first page is mapped and aligned; others may write it meanwhile.
        let word = |place| unsafe { words.add(place).read_volatile() };
        (0..size_of::<DomainHeader>() / size_of::<u64>())
            .map(word)
            .collect()
    }

    /// Runs `f` as a request that holds this domain, with the default [`Options`].
    ///
    /// `f` runs on a stack of its own. If it returns `Ok`, everything it wrote to domains is
    /// committed. If it returns `Err`, that is discarded, its defers run, and the error comes back
    /// as [`RunError::GivenUp`]. If an error strikes (see [`crate::Kind`]), what it wrote is
    /// discarded, the locks that it held are free again, its defers run, and
    /// [`RunError::Failed`] comes back; the thread goes on.
    ///
    /// # Errors
    ///
    /// [`RunError::Failed`], [`RunError::GivenUp`], or [`RunError::Refused`] with
    /// [`Error::Nested`], [`Error::LockTimeout`], [`Error::Layout`], [`Error::System`],
    /// [`Error::Forked`], or [`Error::Unsealed`].
    pub fn run<T, E>(
        &'static self,
        f: impl FnOnce(&Request) -> Result<T, E>,
    ) -> Result<T, RunError<E>> {
        self.run_with(&Options::default(), f)
    }

    /// Like [`Domain::run`], with options.
    ///
    /// # Errors
    ///
    /// As [`Domain::run`].
    pub fn run_with<T, E>(
        &'static self,
        options: &Options,
        f: impl FnOnce(&Request) -> Result<T, E>,
    ) -> Result<T, RunError<E>> {
        let mut f = Some(f);
        let mut value = None;
        let ended = run::run(self, options, &mut |request| {
            let Some(f) = f.take() else {
                return End::GiveUp;
            };
            match value.insert(f(request)) {
                Ok(_) => End::Keep,
                Err(_) => End::GiveUp,
            }
        });
        match (ended, value) {
            (Ok(()), Some(Ok(value))) => Ok(value),
            (Ok(()), Some(Err(error))) => Err(RunError::GivenUp(error)),
            (Ok(()), None) => Err(RunError::Refused(Error::NotInRequest)),
            (Err(Stop::Failed(failure)), _) => Err(RunError::Failed(failure)),
            (Err(Stop::Refused(error)), _) => Err(RunError::Refused(error)),
        }
    }

    /// Runs code on the calling thread, whose request holds this domain, while no other thread of
    /// that request uses its heaps.
    fn holding<T>(
        &self,
        code: impl FnOnce(&'static Thread) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let thread = thread::current().ok_or(Error::NotInRequest)?;
        thread.refuse_amid();
        thread.exclusive(|| {
            if !thread.state().holds(self) {
                return Err(Error::NotHeld);
            }
            code(thread)
        })
    }

    /// Takes a block of at least `size` bytes, aligned to `alignment` (a power of two up to 4096;
    /// at least 16 is given). Its content is undefined; it is visible to others when the request
    /// commits. One block can have at most a little less than 4 MiB.
    ///
    /// # Errors
    ///
    /// [`Error::NotInRequest`], [`Error::NotHeld`], [`Error::Argument`], [`Error::OutOfMemory`].
    pub fn allocate(&'static self, size: usize, alignment: usize) -> Result<NonNull<u8>, Error> {
        self.holding(|thread| {
            if !alignment.is_power_of_two() || alignment > PAGE_SIZE as usize {
                return Err(Error::Argument("the alignment"));
            }
            let block = self
                .heap(thread)
                .allocate(self.first, size, alignment)
                .unwrap_or_else(|damage| fail(damage));
            thread.state().note_heap(self);
            let block = block.ok_or(Error::OutOfMemory { size })?;
            thread.state().recent().note(Noted {
                domain: self,
                address: block.as_ptr() as u64,
            });
            Ok(block)
        })
    }

    /// Gives a block back. A pointer that is no live block of the domain makes the request fail
    /// ([`crate::Kind::DoubleFree`], [`crate::Kind::ForeignFree`]), as does an overwritten red zone;
    /// then this does not return.
    ///
    /// # Errors
    ///
    /// [`Error::NotInRequest`], [`Error::NotHeld`].
    ///
    /// # Safety
    ///
    /// Nobody uses the block afterwards.
    pub unsafe fn deallocate(&'static self, block: NonNull<u8>) -> Result<(), Error> {
        self.holding(|thread| {
            let address = block.as_ptr() as u64;
            let mut heap = self.heap(thread);
            heap.retire(address).unwrap_or_else(|damage| fail(damage));
            let oldest = thread.state().quarantine().note(Noted {
                domain: self,
                address,
            });
            if let Some(oldest) = oldest {
                let mut heap = oldest.domain.heap(thread);
                heap.release(oldest.address)
                    .unwrap_or_else(|damage| fail(damage));
            }
            Ok(())
        })
    }

    /// Changes a block's size, in its place or by moving it; the alignment of a moved block is 16.
    /// A pointer that is no live block makes the request fail.
    ///
    /// # Errors
    ///
    /// As [`Domain::allocate`]; the block is unchanged then.
    ///
    /// # Safety
    ///
    /// Nobody uses the old pointer afterwards.
    pub unsafe fn reallocate(
        &'static self,
        block: NonNull<u8>,
        size: usize,
    ) -> Result<NonNull<u8>, Error> {
        let (old, in_place) = self.holding(|thread| {
            let address = block.as_ptr() as u64;
            let mut heap = self.heap(thread);
            let old = heap.size(address).unwrap_or_else(|damage| fail(damage));
            let in_place = heap.resize(address, size);
            Ok((old, in_place.unwrap_or_else(|damage| fail(damage))))
        })?;
        if in_place {
            return Ok(block);
        }
        let new = self.allocate(size, 16)?;
        // SAFETY: two live blocks, both with at least that many bytes.
        unsafe { new.copy_from_nonoverlapping(block, old.min(size)) };
        // SAFETY: passed on to the caller.
        unsafe { self.deallocate(block) }?;
        Ok(new)
    }

    /// The root pointer, or null if it was never set. Without holding the domain, what it leads to
    /// may change meanwhile, and what another request is writing there cannot be read where the CPU
    /// has protection keys.
    #[must_use]
    pub fn root_address(&self) -> *mut u8 {
        let header = self.header.as_ptr();
        // SAFETY: the domain's first page is mapped; others may write it meanwhile.
        let read = || unsafe { (&raw const (*header).root).read_volatile() as *mut u8 };
        let is_held = |thread: &Thread| thread.exclusive(|| thread.state().holds(self));
        if thread::current().is_some_and(is_held) {
            read()
        } else {
            pkru::with_all(read)
        }
    }

    /// Sets the root pointer.
    ///
    /// # Errors
    ///
    /// [`Error::NotInRequest`], [`Error::NotHeld`].
    pub fn set_root_address(&'static self, root: *mut u8) -> Result<(), Error> {
        self.holding(|thread| {
            self.heap(thread)
                .prepare(self.first)
                .unwrap_or_else(|damage| fail(damage));
            thread.state().note_heap(self);
            let header = self.header.as_ptr();
            // SAFETY: the request holds the domain, and others read with volatile.
            unsafe { (&raw mut (*header).root).write_volatile(root as u64) };
            Ok(())
        })
    }
}

fn fail(damage: Damage) -> ! {
    thread::fail_request(damage.kind, damage.address, &[])
}
