//! Domains: the unit of ownership, with a heap, a root pointer and a lock.

use super::options::Options;
use crate::error::{Error, RunError};
use crate::heap::{Damage, Heap, Taken};
use crate::run::audit;
use crate::run::left::outside;
use crate::run::request::Request;
use crate::run::{self, End, Stop};
use crate::shared::pkru;
use crate::state::Limits;
use crate::state::budget::Budget;
use crate::state::domain::Domain;
use crate::state::ring::Noted;
use crate::thread::{self, Thread};
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use vmsrs_protocol::PAGE_SIZE;

/// How a domain is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainOptions {
    /// The host keeps a second copy of each sealed page, and repairs from it a page whose memory went
    /// wrong. The copies take as much room of the window as the pages. A domain that has a mirror
    /// keeps it, whichever process opens it.
    pub mirror: bool,
}

impl Domain {
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
    /// [`Error::Forked`], or, committed all the same, [`Error::Unsealed`] or [`Error::Damaged`].
    #[expect(clippy::inline_always, reason = "one caller for each function")]
    #[inline(always)]
    pub fn run<T, E>(
        &'static self,
        f: impl FnOnce(&Request) -> Result<T, E>,
    ) -> Result<T, RunError<E>> {
        // The compiler knows their values there.
        self.run_limited::<false, _, _>(Options::default().limits(), false, f)
    }

    /// Like [`Domain::run`], with options.
    ///
    /// # Errors
    ///
    /// As [`Domain::run`], and [`Error::Argument`] for a stack of more than 1 GiB or an arena of more than 64 GiB.
    pub fn run_with<T, E>(
        &'static self,
        options: &Options,
        f: impl FnOnce(&Request) -> Result<T, E>,
    ) -> Result<T, RunError<E>> {
        if let Some(needs) = options.needs() {
            run::prepare(self, needs)?;
        }
        self.run_limited::<true, _, _>(options.limits(), options.seal, f)
    }

    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    fn run_limited<const TIMED: bool, T, E>(
        &'static self,
        limits: Limits,
        seal: bool,
        f: impl FnOnce(&Request) -> Result<T, E>,
    ) -> Result<T, RunError<E>> {
        // Not dropped here: a deadline can end the function with a half of it written.
        let mut value = MaybeUninit::uninit();
        let ended = run::run::<TIMED, _>(self, limits, seal, |request| {
            let result = f(request);
            let end = if result.is_ok() {
                End::Keep
            } else {
                End::GiveUp
            };
            value.write(result);
            end
        });
        match ended {
            // SAFETY: the request has ended in order, so the function has returned, and the value is written.
            Ok(()) => match unsafe { value.assume_init() } {
                Ok(value) => Ok(value),
                Err(error) => Err(RunError::GivenUp(error)),
            },
            Err(stop) => Err(not_ended(stop)),
        }
    }

    /// Runs code on the calling thread, whose request holds this domain, while no other thread of
    /// that request uses its heaps.
    pub(super) fn holding<T>(
        &self,
        code: impl FnOnce(&'static Thread) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let thread = run::left::working().ok_or(Error::NotInRequest)?;
        thread.reject_reentry();
        thread.exclusive(|| {
            if !thread.state().holds(self) {
                return Err(Error::NotHeld);
            }
            code(thread)
        })
    }

    /// Takes a block of at least `size` bytes, aligned to `alignment` (a power of two up to 4096;
    /// at least 16 is given). Its content is undefined; it is visible to others when the request
    /// commits. Pages of it that nobody writes cost the request nothing, so a table can be larger than what a request may write.
    ///
    /// # Errors
    ///
    /// [`Error::NotInRequest`], [`Error::NotHeld`], [`Error::Argument`], [`Error::OutOfMemory`].
    pub fn allocate(&'static self, size: usize, alignment: usize) -> Result<NonNull<u8>, Error> {
        self.take_block(size, alignment, |heap| {
            heap.allocate(self.first(), size, alignment)
        })
    }

    /// Like [`Domain::allocate`]; the block is filled with zeros. Pages that are zero already are not written.
    ///
    /// # Errors
    ///
    /// As [`Domain::allocate`].
    pub fn allocate_zeroed(
        &'static self,
        size: usize,
        alignment: usize,
    ) -> Result<NonNull<u8>, Error> {
        let taken = self.take_known(size, alignment)?;
        // SAFETY: just taken, with that size.
        unsafe { taken.clear(size) };
        Ok(taken.block())
    }

    /// Takes a block of which it is known what is zero.
    fn take_known(&'static self, size: usize, alignment: usize) -> Result<Taken, Error> {
        let taken = self.take_block(size, alignment, |heap| {
            heap.allocate_known(self.first(), size, alignment)
        })?;
        if let Some(unseen) = taken.unseen(size) {
            self.holding(|thread| {
                audit::check_unwritten(thread, self, &unseen).unwrap_or_else(|damage| fail(damage));
                Ok(())
            })?;
        }
        Ok(taken)
    }

    /// Takes a block by `allocate`.
    #[expect(clippy::inline_always, reason = "for each block that is taken")]
    #[inline(always)]
    fn take_block<T: Block>(
        &'static self,
        size: usize,
        alignment: usize,
        allocate: impl FnOnce(&mut Heap) -> Result<Option<T>, Damage>,
    ) -> Result<T, Error> {
        self.holding(|thread| {
            if !alignment.is_power_of_two() || alignment > PAGE_SIZE as usize {
                return Err(Error::Argument(
                    "the alignment must be a power of two up to 4096",
                ));
            }
            let taken =
                allocate(&mut thread.state().heap(self)).unwrap_or_else(|damage| fail(damage));
            thread.state().note_heap(self);
            let taken = taken.ok_or(Error::OutOfMemory { size })?;
            self.note_recent(thread, taken.block());
            Ok(taken)
        })
    }

    /// Notes what the request has taken, for the audit.
    pub(super) fn note_recent(&'static self, thread: &Thread, block: NonNull<u8>) {
        let noted = Noted {
            domain: self,
            address: block.as_ptr() as u64,
        };
        thread.state().recent().note(thread.state().tag(), noted);
    }

    /// Gives a block back. A pointer that is not a live block of the domain makes the request fail
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
            self.retire(thread, block.as_ptr() as u64);
            Ok(())
        })
    }

    /// Puts a live block in quarantine; what has been there longest goes back to its heap.
    pub(super) fn retire(&'static self, thread: &Thread, address: u64) {
        let mut heap = thread.state().heap(self);
        heap.retire(address).unwrap_or_else(|damage| fail(damage));
        let noted = Noted {
            domain: self,
            address,
        };
        let (state, tag) = (thread.state(), thread.state().tag());
        let oldest = state.quarantine().note(tag, noted);
        if let Some(oldest) = oldest {
            let mut heap = thread.state().heap(oldest.domain);
            heap.release(oldest.address)
                .unwrap_or_else(|damage| fail(damage));
        }
    }

    /// Changes a block's size, in its place or by moving it; the alignment of a moved block is 16.
    /// A pointer that is not a live block makes the request fail.
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
            let mut heap = thread.state().heap(self);
            let old = heap.size(address).unwrap_or_else(|damage| fail(damage));
            let in_place = heap.resize(address, size);
            Ok((old, in_place.unwrap_or_else(|damage| fail(damage))))
        })?;
        if in_place {
            return Ok(block);
        }
        let new = self.take_known(size, 16)?;
        // SAFETY: two live blocks, both with at least that many bytes; one was just taken.
        unsafe { new.copy(block, old.min(size)) };
        // SAFETY: passed on to the caller.
        unsafe { self.deallocate(block) }?;
        Ok(new.block())
    }

    /// The root pointer, or null if it was never set. Without holding the domain, what it leads to
    /// may change meanwhile, and where the CPU has protection keys, what another request is writing cannot
    /// be read.
    #[must_use]
    pub fn root_address(&self) -> *mut u8 {
        let header = self.header();
        // SAFETY: the domain's first page is mapped; others may write it meanwhile.
        let read = || unsafe { (&raw const (*header).root).read_volatile() as *mut u8 };
        // The domain that a request was begun with is held as long as there is a request.
        let is_held = |thread: &Thread| {
            thread.tag() != 0
                && (thread.is_begun_with(self) || thread.exclusive(|| thread.state().holds(self)))
        };
        if run::left::working().is_some_and(is_held) {
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
            thread
                .state()
                .heap(self)
                .prepare(self.first())
                .unwrap_or_else(|damage| fail(damage));
            thread.state().note_heap(self);
            let header = self.header();
            // SAFETY: the request holds the domain, and others read with volatile.
            unsafe { (&raw mut (*header).root).write_volatile(root as u64) };
            Ok(())
        })
    }

    /// Like [`crate::App::set_budget`], for this domain instead of the app's.
    ///
    /// # Errors
    ///
    /// [`Error::Nested`] inside a request or a defer.
    pub fn set_budget(&self, budget: Budget) -> Result<(), Error> {
        outside()?;
        self.budget().set(budget);
        Ok(())
    }

    /// Like [`crate::App::set_invariant`], for this domain. The app's is checked as well.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] if the domain has one; [`Error::Nested`] inside a request or a defer.
    pub fn set_invariant(
        &self,
        check: impl Fn(&'static Domain) -> Result<(), String> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        outside()?;
        self.invariant().set(Box::new(check))
    }
}

/// A block that was taken.
trait Block {
    fn block(&self) -> NonNull<u8>;
}

impl Block for NonNull<u8> {
    fn block(&self) -> NonNull<u8> {
        *self
    }
}

impl Block for Taken {
    fn block(&self) -> NonNull<u8> {
        self.block
    }
}

#[cold]
#[expect(clippy::boxed_local, reason = "on a cold way only")]
fn not_ended<E>(stop: Box<Stop>) -> RunError<E> {
    match *stop {
        Stop::Failed(failure) => RunError::Failed(failure),
        Stop::Refused(error) => RunError::Refused(error),
    }
}

pub(super) fn fail(damage: Damage) -> ! {
    thread::fail_request(damage.kind, damage.address, &[])
}
