//! Bytes outside of domains that go back to what they were when the request has failed.
//!
//! The copies are memory of the library that the request could write to by a wrong pointer, so each has a check word: what is not as it
//! was saved is not copied back.

use super::State;
use super::check::check_word;
use super::joining::KEPT;
use super::list_memory::ListMemory;
use crate::error::Error;
use crate::os::own_memory;
use crate::os::region::Region;
use std::sync::atomic::{AtomicBool, Ordering};

/// Most bytes that one request can keep, with [`OVERHEAD`] for each call.
pub(crate) const KEPT_MAX: usize = 64 * 1024;

/// Bytes that a call takes besides those that it saves.
const OVERHEAD: usize = size_of::<Saved>();

/// What is saved: from the end of the memory downwards, while the bytes grow upwards.
#[derive(Clone, Copy)]
#[repr(C)]
struct Saved {
    address: u64,
    size: usize,
    /// Where its bytes begin.
    start: usize,
    check: u64,
}

/// What a request has saved, in the order of its calls. The list's end is that of the bytes.
pub(super) struct Kept(ListMemory);

/// The kernel copies back.
static CAN_WRITE: AtomicBool = AtomicBool::new(false);

impl Kept {
    pub(super) fn new() -> Self {
        Self(ListMemory::new())
    }

    fn place(memory: &Region, number: usize) -> *mut Saved {
        let end = memory.low().wrapping_add(KEPT_MAX).cast::<Saved>();
        end.wrapping_sub(number + 1)
    }

    /// Of a copy, and of its bytes.
    fn check_of(tag: u64, saved: &Saved, bytes: &[u8]) -> u64 {
        let word = |part: &[u8]| {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            u64::from_le_bytes(word)
        };
        let header = [saved.address, saved.size as u64, saved.start as u64];
        check_word(tag, header.into_iter().chain(bytes.chunks(8).map(word)))
    }

    /// Saves bytes. The list is whole.
    ///
    /// # Safety
    ///
    /// They can be read.
    unsafe fn save(&mut self, address: *const u8, size: usize) -> Result<(), Error> {
        let (tag, count, start) = (self.0.tag(), self.0.count(), self.0.end());
        let needed = size.saturating_add((count + 1) * OVERHEAD);
        let Some(memory) = self.0.region().filter(|_| needed <= KEPT_MAX - start) else {
            return Err(Error::Limit("64 KiB of variables that go back"));
        };
        let copy = memory.low().wrapping_add(start);
        // SAFETY: readable by contract, and below the list of what is saved, which has room as checked above.
        let bytes = unsafe {
            copy.copy_from_nonoverlapping(address, size);
            std::slice::from_raw_parts(copy, size)
        };
        let mut saved = Saved {
            address: address as u64,
            size,
            start,
            check: 0,
        };
        saved.check = Self::check_of(tag, &saved, bytes);
        // SAFETY: as above.
        unsafe { Self::place(memory, count).write(saved) };
        self.0.set(tag, count + 1, start + size);
        Ok(())
    }

    /// What was saved, as it was when the request asked for this; nothing if a stray write has changed it.
    fn saved(&self, number: usize) -> Option<(u64, &[u8])> {
        let memory = self.0.region()?;
        // SAFETY: the list is whole, so it has that many.
        let saved = unsafe { Self::place(memory, number).read() };
        let end = saved.start.checked_add(saved.size);
        if end.is_none_or(|end| end > self.0.end()) {
            return None;
        }
        let copy = memory.low().wrapping_add(saved.start);
        // SAFETY: inside the memory, by the comparison.
        let bytes = unsafe { std::slice::from_raw_parts(copy, saved.size) };
        let is_whole = saved.check == Self::check_of(self.0.tag(), &saved, bytes);
        is_whole.then_some((saved.address, bytes))
    }

    /// Copies one back; false if it cannot.
    fn restore(&self, number: usize) -> bool {
        self.saved(number).is_some_and(|(address, bytes)| {
            // SAFETY: what was there when the request asked for this.
            unsafe { own_memory::write(address, bytes) }.is_ok()
        })
    }
}

/// Asks the kernel once, so that a request is not told that its bytes go back if they cannot.
fn check_kernel() -> Result<(), Error> {
    if !CAN_WRITE.load(Ordering::Relaxed) {
        let mut place = 0u8;
        // SAFETY: the variable above.
        let written = unsafe { own_memory::write((&raw mut place) as u64, &[1]) };
        written.map_err(Error::system("process_vm_writev to the process itself"))?;
        CAN_WRITE.store(true, Ordering::Relaxed);
    }
    Ok(())
}

impl State {
    /// Saves bytes that go back if the request fails. False if a stray write has changed what was saved before.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`]; [`Error::System`] if there is no memory, or the kernel cannot copy back.
    ///
    /// # Safety
    ///
    /// They can be read.
    pub(crate) unsafe fn keep(&self, address: *const u8, size: usize) -> Result<bool, Error> {
        check_kernel()?;
        let (tag, is_first) = (self.tag(), !self.has(KEPT));
        self.lists(|lists| {
            let kept = &mut lists.kept;
            if is_first {
                kept.0.begin(tag, KEPT_MAX)?;
            } else if !kept.0.is_of(tag) {
                return Ok(false);
            }
            // SAFETY: the caller's.
            unsafe { kept.save(address, size) }?;
            Ok(true)
        })
        .inspect(|_| self.set(KEPT))
    }

    /// What was saved so far stays as it is now.
    pub(crate) fn forget_kept(&self) {
        self.unset(KEPT);
    }

    /// Whether all that was saved can go back, as far as its copies are concerned.
    pub(crate) fn is_kept_whole(&self) -> bool {
        if !self.has(KEPT) {
            return true;
        }
        let tag = self.tag();
        self.lists(|lists| {
            let kept = &lists.kept;
            kept.0.is_of(tag) && (0..kept.0.count()).all(|number| kept.saved(number).is_some())
        })
    }

    /// Copies everything back, the newest first. Returns how many could not be: their memory is gone, or a stray write has changed
    /// the copy. Nothing is left for a second time.
    #[inline]
    pub(crate) fn restore_kept(&self) -> u32 {
        if self.has(KEPT) {
            self.restore_all()
        } else {
            0
        }
    }

    #[cold]
    #[inline(never)]
    fn restore_all(&self) -> u32 {
        let tag = self.tag();
        let failed = self.lists(|lists| {
            let kept = &lists.kept;
            if !kept.0.is_of(tag) {
                return 1;
            }
            let failed = (0..kept.0.count())
                .rev()
                .filter(|&number| !kept.restore(number));
            failed.count() as u32
        });
        self.forget_kept();
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::MockBackend;
    use crate::{App, Domain};
    use crate::{RunError, thread};
    use std::sync::OnceLock;

    /// The tests' app: a process can have few.
    fn app() -> &'static App {
        static APP: OnceLock<&App> = OnceLock::new();
        APP.get_or_init(|| MockBackend::app("copies", |hooks| hooks.protects = true))
    }

    /// A request that keeps two numbers, changes them and fails; what they are then, and how many could not be put back.
    fn run(domain: &'static Domain, damage: fn(&mut Kept)) -> ([u64; 2], u32) {
        let mut numbers = [1u64, 2];
        let place = &raw mut numbers;
        let outcome: Result<(), RunError<Error>> = domain.run(|request| {
            for number in 0..2 {
                // SAFETY: they live longer than the request.
                unsafe { request.keep(place.cast::<u64>().wrapping_add(number)) }?;
            }
            // SAFETY: as above.
            unsafe { place.write([3, 4]) };
            let state = thread::current().unwrap().state();
            state.lists(|lists| damage(&mut lists.kept));
            request.fail("this request fails")
        });
        let Err(RunError::Failed(failure)) = outcome else {
            panic!("{outcome:?}");
        };
        assert!(thread::of(domain.app()).unwrap().is_at_rest());
        // SAFETY: the variable above.
        (unsafe { place.read() }, failure.defers_failed)
    }

    type Damage = fn(&mut Kept);

    #[test]
    fn damaged_copies_are_not_put_back() {
        let domain = app().domain("1").unwrap();
        assert_eq!(run(domain, |_| ()), ([1, 2], 0));
        let damages: [(Damage, [u64; 2]); 4] = [
            (|kept| kept.0.damage(|_, count, _| *count = 1), [3, 4]),
            (|kept| kept.0.damage(|tag, _, _| *tag += 1), [3, 4]),
            (
                |kept| {
                    let copy = kept.0.region().unwrap().low();
                    // SAFETY: the first copy; the damage is the test.
                    unsafe { copy.write(9) };
                },
                [3, 2],
            ),
            (
                |kept| {
                    let memory = kept.0.region().unwrap();
                    // SAFETY: two entries; the damage is the test.
                    unsafe { (*Kept::place(memory, 1)).address += 8 };
                },
                [1, 4],
            ),
        ];
        for (number, (damage, after)) in damages.into_iter().enumerate() {
            let outcome = run(domain, damage);
            assert_eq!(outcome, (after, 1), "{number}");
        }
    }

    #[test]
    fn request_that_gives_up_fails_if_a_copy_is_damaged() {
        let domain = app().domain("2").unwrap();
        for is_damaged in [false, true] {
            let mut number = 1u64;
            let place = &raw mut number;
            let outcome: Result<(), RunError<Error>> = domain.run(|request| {
                // SAFETY: it lives longer than the request.
                unsafe { request.keep(place) }?;
                // SAFETY: as above.
                unsafe { place.write(2) };
                let state = thread::current().unwrap().state();
                if is_damaged {
                    state.lists(|lists| {
                        // SAFETY: the copy; the damage is the test.
                        unsafe { *lists.kept.0.region().unwrap().low() ^= 1 };
                    });
                }
                Err(Error::NotHeld)
            });
            match outcome {
                Err(RunError::Failed(failure)) => {
                    assert!(is_damaged);
                    assert_eq!(failure.defers_failed, 1);
                }
                // SAFETY: as above.
                Err(RunError::GivenUp(_)) => assert!(!is_damaged && unsafe { place.read() } == 1),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn copies_of_one_request_have_a_limit() {
        let domain = app().domain("3").unwrap();
        let bytes = vec![0u8; KEPT_MAX];
        let fits = |size: usize| {
            let outcome = domain.run(|request| {
                // SAFETY: they live longer than the request.
                unsafe { request.keep_bytes(bytes.as_ptr().cast_mut(), size) }
            });
            match outcome {
                Ok(()) => true,
                Err(RunError::GivenUp(Error::Limit(_))) => false,
                other => panic!("{other:?}"),
            }
        };
        assert!(fits(KEPT_MAX - OVERHEAD) && !fits(KEPT_MAX - OVERHEAD + 1));
    }
}
