//! Defers: work that undoes something outside domains.

use super::State;
use crate::error::Error;
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Most defers of one request.
pub(crate) const DEFERS_MAX: usize = 256;

type Call = unsafe extern "C-unwind" fn(*mut c_void);
type Discard = unsafe fn(*mut c_void);

/// Something to undo. Dropping it drops what it owns without running it.
pub(crate) struct Deferred {
    call: Call,
    argument: *mut c_void,
    discard: Option<Discard>,
    /// The descriptor that it closes.
    closes: Option<RawFd>,
}

impl Drop for Deferred {
    fn drop(&mut self) {
        if let Some(discard) = self.discard {
            // SAFETY: the maker says that discard takes the argument.
            unsafe { discard(self.argument) };
        }
    }
}

impl Deferred {
    /// A closure.
    pub(crate) fn new(undo: impl FnOnce() + Send + 'static) -> Self {
        type Undo = Box<dyn FnOnce() + Send>;
        unsafe extern "C-unwind" fn call(argument: *mut c_void) {
            // SAFETY: made below, and called at most once.
            let undo = unsafe { Box::from_raw(argument.cast::<Undo>()) };
            undo();
        }
        unsafe fn discard(argument: *mut c_void) {
            // SAFETY: made below, and not called.
            drop(unsafe { Box::from_raw(argument.cast::<Undo>()) });
        }
        let undo: Box<Undo> = Box::new(Box::new(undo));
        Self {
            call,
            argument: Box::into_raw(undo).cast(),
            discard: Some(discard),
            closes: None,
        }
    }

    /// One that closes that descriptor.
    pub(crate) fn closing(fd: RawFd, undo: impl FnOnce() + Send + 'static) -> Self {
        let mut this = Self::new(undo);
        this.closes = Some(fd);
        this
    }

    /// A C function, which may be called with its argument once, on any thread.
    pub(crate) fn raw(call: Call, argument: *mut c_void) -> Self {
        Self {
            call,
            argument,
            discard: None,
            closes: None,
        }
    }

    /// What it is, for a list that checks its entries. It does not close a descriptor.
    pub(crate) fn into_words(self) -> [u64; 3] {
        let this = ManuallyDrop::new(self);
        let discard = this.discard.map_or(0, |discard| discard as usize);
        [this.call as usize, this.argument.addr(), discard].map(|word| word as u64)
    }

    /// The same back.
    ///
    /// # Safety
    ///
    /// The words are of [`Deferred::into_words`], and used once.
    pub(crate) unsafe fn from_words([call, argument, discard]: [u64; 3]) -> Self {
        // SAFETY: functions of these types, and 0 for none, which is how an option of one is laid out.
        let (call, discard) = unsafe {
            (
                std::mem::transmute::<u64, Call>(call),
                std::mem::transmute::<u64, Option<Discard>>(discard),
            )
        };
        Self {
            call,
            argument: argument as *mut c_void,
            discard,
            closes: None,
        }
    }

    /// Calls it, as the server's own code: what it throws goes on.
    pub(crate) fn call(self) {
        let this = ManuallyDrop::new(self);
        // SAFETY: the maker says that it may be called with its argument, once.
        unsafe { (this.call)(this.argument) };
    }

    /// Runs it; false if it panicked. If it is cut short, what it owns is leaked.
    pub(crate) fn run(self) -> bool {
        let (call, argument) = (self.call, self.argument);
        std::mem::forget(self);
        // SAFETY: the maker says that it may be called with its argument, once.
        catch_unwind(AssertUnwindSafe(|| unsafe { call(argument) })).is_ok()
    }
}

impl State {
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

    /// Descriptors that they close.
    pub(crate) fn owned_descriptors(&self) -> u32 {
        self.lists(|lists| {
            lists
                .defers
                .iter()
                .filter(|defer| defer.closes.is_some())
                .count()
        }) as u32
    }

    /// Takes the newest one that closes the descriptor.
    pub(crate) fn disown(&self, fd: RawFd) -> Option<Deferred> {
        self.lists(|lists| {
            let is_it = |defer: &Deferred| defer.closes == Some(fd);
            let place = lists.defers.iter().rposition(is_it)?;
            Some(lists.defers.remove(place))
        })
    }

    /// How many there are.
    pub(crate) fn defers(&self) -> usize {
        self.lists(|lists| lists.defers.len())
    }

    /// Moves all defers to `all`. Does not allocate if that has room for them.
    pub(crate) fn take_defers(&self, all: &mut Vec<Deferred>) {
        self.lists(|lists| all.append(&mut lists.defers));
    }
}
