//! What code in a request calls, from start to commit or failure.

use crate::error::Error;
use crate::failure::Kind;
use crate::os::{clock, file};
use crate::run::ARENA;
use crate::run::audit::{audit_all, audit_left};
use crate::run::commit::{audited, commit_all, is_committed, refused_commit};
use crate::run::hot;
use crate::run::left::working;
use crate::run::lock;
use crate::run::on_commit::DAMAGED;
use crate::run::request::Request;
use crate::state::deferred::Deferred;
use crate::state::domain::{App, Domain};
use crate::thread::arena::Arena;
use crate::thread::panics::Before;
use crate::thread::{self, Thread};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::RawFd;
use std::ptr::{self, NonNull};
use vmsrs_protocol::shared::HELD_MAX;

/// What a request fails with whose list of kept variables is damaged.
const CHANGED: &[u8] = b"the list of variables that go back was overwritten";

/// A shared domain that the request has entered. Dropping it leaves the domain: what was written is
/// committed and others can enter. To keep the domain to the end of the request, [`Entered::keep`]
/// it.
#[derive(Debug)]
#[must_use = "dropping it leaves the domain at once"]
pub struct Entered<'request> {
    request: &'request Request,
    domain: &'static Domain,
    before: Before,
}

impl Entered<'_> {
    /// The domain.
    #[must_use]
    pub fn domain(&self) -> &'static Domain {
        self.domain
    }

    /// Commits what the request wrote to the domain, and unlocks it.
    ///
    /// # Errors
    ///
    /// [`Error::System`]; the domain is held to the end of the request then.
    pub fn leave(self) -> Result<(), Error> {
        let outcome = self.request.leave_unguarded(self.domain);
        std::mem::forget(self);
        outcome
    }

    /// Holds the domain to the end of the request; it commits together with it.
    #[expect(
        clippy::must_use_candidate,
        reason = "the domain stays held either way"
    )]
    pub fn keep(self) -> &'static Domain {
        let domain = self.domain;
        std::mem::forget(self);
        domain
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        // A panic on its way out discards everything: nothing is committed then.
        if !self.before.is_unwinding() {
            // On an error the domain stays held, and commits or fails with the request.
            let _ = self.request.leave_unguarded(self.domain);
        }
    }
}

impl Request {
    /// Moves a value into a new block of the request's domain.
    ///
    /// The value is never dropped by itself; [`Request::free`] gives the memory back.
    ///
    /// # Errors
    ///
    /// As [`Domain::allocate`].
    #[expect(clippy::mut_from_ref, reason = "every call gives another block")]
    pub fn alloc<T>(&self, value: T) -> Result<&mut T, Error> {
        let block = self
            .domain()
            .allocate(size_of::<T>(), align_of::<T>())?
            .cast::<T>();
        // SAFETY: a fresh block, large enough and aligned, that nobody else knows.
        unsafe {
            block.write(value);
            Ok(&mut *block.as_ptr())
        }
    }

    /// Gives a block of the request's domain back, without dropping what is in it.
    ///
    /// # Errors
    ///
    /// As [`Domain::deallocate`].
    ///
    /// # Safety
    ///
    /// As [`Domain::deallocate`].
    pub unsafe fn free<T>(&self, block: NonNull<T>) -> Result<(), Error> {
        // SAFETY: passed on to the caller.
        unsafe { self.domain().deallocate(block.cast()) }
    }

    /// The root pointer of the request's domain; `None` if it was never set.
    #[must_use]
    pub fn root<T>(&self) -> Option<NonNull<T>> {
        NonNull::new(self.domain().root_address().cast())
    }

    /// Sets the root pointer of the request's domain.
    ///
    /// # Errors
    ///
    /// As [`Domain::set_root_address`].
    pub fn set_root<T>(&self, root: Option<NonNull<T>>) -> Result<(), Error> {
        let root = root.map_or(ptr::null_mut(), |root| root.as_ptr().cast());
        self.domain().set_root_address(root)
    }

    /// Locks a shared domain and opens an atomic section on it, for all threads of the request. The
    /// server chooses the order in which domains are entered. When waiting would never end,
    /// since requests wait for each other in a cycle, one of them is told
    /// ([`Error::WouldDeadlock`]).
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyHeld`] (sections do not nest; also while another thread of the request waits
    /// for the domain), [`Error::Limit`], [`Error::OtherApp`], [`Error::LockTimeout`],
    /// [`Error::WouldDeadlock`], [`Error::Layout`], [`Error::System`], [`Error::NotInRequest`].
    pub fn enter(&self, domain: &'static Domain) -> Result<Entered<'_>, Error> {
        self.enter_unguarded(domain)?;
        Ok(Entered {
            request: self,
            domain,
            before: Before::now(),
        })
    }

    /// Locks several shared domains, in an order of its own that is the same in all requests, and
    /// holds them to the end of the request or to [`Request::leave`]. Domains that the request holds
    /// already, or that are named twice, are not an error; one that another thread of the request waits for is
    /// waited for as well.
    ///
    /// Requests that enter all they need by one such call cannot wait for each other in a cycle,
    /// unless by the domain that they began with.
    ///
    /// # Errors
    ///
    /// As [`Request::enter`]; what this call has locked before is left again, and nothing else. Another
    /// thread of the request that found it locked loses it too.
    pub fn enter_all(&self, domains: &[&'static Domain]) -> Result<(), Error> {
        // By number, without a copy on any heap: the next one above the last.
        let above = |last: Option<u32>| {
            let rest = domains.iter().copied();
            rest.filter(|domain| last.is_none_or(|last| domain.number() > last))
                .min_by_key(|domain| domain.number())
        };
        let mut last = None;
        // Other threads of the request enter and leave domains meanwhile, so these are not just its newest.
        let mut entered = [const { MaybeUninit::uninit() }; HELD_MAX];
        let mut count = 0;
        while let Some(domain) = above(last) {
            match self.enter_or_share(domain) {
                // A request holds no more than there are places.
                Ok(true) => {
                    if let Some(place) = entered.get_mut(count) {
                        place.write(domain);
                        count += 1;
                    }
                }
                Ok(false) => {}
                Err(error) => {
                    for domain in entered[..count].iter().rev() {
                        // SAFETY: set above, as the first `count` of them are.
                        let domain: &Domain = unsafe { domain.assume_init() };
                        // What cannot be left is held to the end.
                        let _ = self.leave_unguarded(domain);
                    }
                    return Err(error);
                }
            }
            last = Some(domain.number());
        }
        Ok(())
    }

    /// Locks a domain unless the request holds it; whether it was locked here. While another thread of the
    /// request waits for it, so does this one.
    fn enter_or_share(&self, domain: &'static Domain) -> Result<bool, Error> {
        let thread = self.thread()?;
        let state = thread.state();
        let milliseconds = thread.lock_timeout_ms();
        let end = clock::now().saturating_add(u64::from(milliseconds) * 1_000_000);
        loop {
            match self.enter_unguarded(domain) {
                Err(Error::AlreadyHeld) => {}
                entered => return entered.map(|()| true),
            }
            let look = || (state.holds(domain), state.lists_held(domain.number()));
            if thread.exclusive(look).0 {
                return Ok(false);
            }
            if clock::now() >= end {
                return Err(Error::LockTimeout { milliseconds });
            }
            state.wait_for_held(|| {
                let (held, listed) = thread.exclusive(look);
                held || !listed
            });
            thread.act_on_pending();
        }
    }

    /// Commits what the request wrote to a domain that it has entered, and unlocks it; as
    /// [`Entered::leave`], for domains that are held without a guard.
    ///
    /// # Errors
    ///
    /// [`Error::NotHeld`], [`Error::MainDomain`], [`Error::System`] (the domain is held to the end
    /// of the request then), [`Error::NotInRequest`].
    pub fn leave(&self, domain: &'static Domain) -> Result<(), Error> {
        self.leave_unguarded(domain)
    }

    pub(crate) fn enter_unguarded(&self, domain: &'static Domain) -> Result<(), Error> {
        let thread = self.thread()?;
        if !ptr::eq(thread.app(), domain.app()) {
            return Err(Error::OtherApp);
        }
        thread.reject_reentry();
        thread.critical(|| {
            lock::lock(thread, domain, thread.lock_timeout_ms())?;
            let has_heap = domain
                .check_layout()
                .inspect_err(|_| lock::unlock(thread, domain.number()))?;
            hot::cool_entered(thread, domain);
            thread.exclusive(|| thread.state().note_domain(domain, has_heap));
            Ok(())
        })
    }

    pub(crate) fn leave_unguarded(&self, domain: &'static Domain) -> Result<(), Error> {
        let thread = self.thread()?;
        if !thread.exclusive(|| thread.state().holds(domain)) {
            return Err(Error::NotHeld);
        }
        if ptr::eq(self.domain(), domain) {
            return Err(Error::MainDomain);
        }
        let commit = || {
            // Another thread of the request may have left it meanwhile.
            let taken = thread.state().forget_domain(domain);
            let has_heap = taken.ok_or(Error::NotHeld)?;
            if thread.has_drafts() {
                let backend = thread.app().backend();
                backend
                    .commit(thread.tag(), domain.number(), 0)
                    .map_err(|error| {
                        thread.state().note_domain(domain, has_heap);
                        refused_commit(thread, error)
                    })?;
            }
            lock::unlock(thread, domain.number());
            Ok(())
        };
        audited(thread, |thread| audit_left(thread, domain), commit)
    }

    /// Commits everything that the request wrote so far, and waits for the host's seal if `seal`.
    /// The request goes on with its domains; its defers are forgotten, and what was registered by
    /// [`Request::on_commit`] so far is called when the request has ended, however it ends. That is everything that all
    /// threads of the request wrote so far, also what one is in the middle of: let the others come to
    /// rest before. The heaps are whole all the same: a thread that takes or gives back a block meanwhile
    /// waits for the commit.
    ///
    /// # Errors
    ///
    /// [`Error::Unsealed`], [`Error::Damaged`] (both: committed all the same), [`Error::System`],
    /// [`Error::NotInRequest`].
    pub fn commit(&self, seal: bool) -> Result<(), Error> {
        // A child that shares the memory is another task for the driver.
        let thread = self.thread()?.own()?;
        // What is committed is not undone any more, whatever happens from here on; so its defers are taken
        // away with it. They are dropped as part of the request: they are the server's.
        let mut forgotten = Vec::new();
        if let Some(address) = thread.arena().find_damage() {
            thread::fail_request(Kind::RedZone, address, ARENA);
        }
        if !thread.exclusive(|| thread.state().is_on_commit_whole()) {
            thread::fail_request(Kind::Memory, 0, DAMAGED);
        }
        audited(thread, audit_all, || {
            forgotten.reserve_exact(thread.state().defers());
            let committed = commit_all(thread, seal, 0);
            if is_committed(&committed) {
                thread.state().take_defers(&mut forgotten);
                thread.state().set_on_commit_due();
                thread.state().forget_kept();
            }
            committed
        })
    }

    /// Registers work that undoes something outside domains, in case the request fails or is
    /// given up; the newest runs first. It runs on the thread that ends the request, but
    /// outside the request: it cannot write to domains,
    /// and errors in it are suppressed and counted.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`] after 256 of them, [`Error::NotInRequest`].
    pub fn defer(&self, undo: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        self.register(Deferred::new(undo))
    }

    pub(crate) fn defer_raw(
        &self,
        call: unsafe extern "C-unwind" fn(*mut c_void),
        argument: *mut c_void,
    ) -> Result<(), Error> {
        self.register(Deferred::raw(call, argument))
    }

    /// Registers work that is done once the request is committed: an answer that is sent, a message to others. In the order of
    /// registration, on the thread that ends the request and before the call that has run it returns, but outside of the request,
    /// which holds nothing any more. If the request fails or is given up, it is forgotten, unless [`Request::commit`] has come
    /// after it.
    ///
    /// It is code like any other outside of requests: it may run requests, and an error in it is the process's. A panic goes
    /// on, and what is registered after it is not done. `errno` is as the request's function left it afterwards.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`] after 262,144 of them, [`Error::System`] if there is no memory for their list, [`Error::NotInRequest`].
    pub fn on_commit(&self, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        self.register_on_commit(Deferred::new(work))
    }

    pub(crate) fn on_commit_raw(
        &self,
        call: unsafe extern "C-unwind" fn(*mut c_void),
        argument: *mut c_void,
    ) -> Result<(), Error> {
        self.register_on_commit(Deferred::raw(call, argument))
    }

    fn register_on_commit(&self, deferred: Deferred) -> Result<(), Error> {
        let thread = self.thread()?;
        thread.reject_reentry();
        // As for register().
        let mut deferred = Some(deferred);
        let note = || thread.state().note_on_commit(&mut deferred);
        if !thread.critical(|| thread.exclusive(note))? {
            thread::fail_request(Kind::Memory, 0, DAMAGED);
        }
        Ok(())
    }

    /// Has a variable outside of domains be what it is now if the request fails or is given up: its bytes are saved, and copied back
    /// then. A commit in the middle forgets the copy.
    ///
    /// They are copied back before the request's domains are free, unless other threads have worked for it or the driver has
    /// ended it at its deadline: then they are a little later. In any case what others have written to the same bytes since
    /// the call is lost as well: so the variable is the request's, or is guarded by a domain or a [`crate::Mutex`] that the request holds to its end.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] if the variable lies in a domain, or has no bytes; [`Error::Limit`] after 64 KiB of them, with 32 bytes for each call;
    /// [`Error::System`] if there is no memory for the copies or the kernel refuses `process_vm_writev`; [`Error::NotInRequest`].
    ///
    /// # Safety
    ///
    /// The variable can be read, and written until the request has ended; and it is good for whoever uses it if its bytes are
    /// those of the call again.
    pub unsafe fn keep<T>(&self, variable: *mut T) -> Result<(), Error> {
        // SAFETY: the caller's.
        unsafe { self.keep_bytes(variable.cast(), size_of::<T>()) }
    }

    /// # Safety
    ///
    /// As [`Request::keep`].
    pub(crate) unsafe fn keep_bytes(&self, address: *mut u8, size: usize) -> Result<(), Error> {
        let thread = self.thread()?;
        thread.reject_reentry();
        let start = address as u64;
        let end = start.checked_add(size as u64).filter(|&end| end > start);
        let end = end.ok_or(Error::Argument("there are no bytes to keep"))?;
        if App::any_in(&(start..end)) {
            return Err(Error::Argument("the bytes lie in a domain"));
        }
        // SAFETY: the caller's.
        let keep = || unsafe { thread.state().keep(address, size) };
        if !thread.critical(|| thread.exclusive(keep))? {
            thread::fail_request(Kind::Memory, 0, CHANGED);
        }
        Ok(())
    }

    /// Gives the request a descriptor, which is closed if the request fails or is given up; if it is committed, the descriptor
    /// stays open and is the caller's. Counts as a defer.
    ///
    /// Before the request closes it itself, it has to be taken back ([`Request::disown_fd`]): another thread may get its number for
    /// another file. Without that it is closed only if that file looks the same, which another descriptor of the same file does, and
    /// any anonymous one (eventfd, epoll, timerfd).
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] if it is not open, [`Error::Limit`] after 256 defers, [`Error::NotInRequest`].
    pub fn own_fd(&self, fd: RawFd) -> Result<(), Error> {
        let file = file::identity(fd).ok_or(Error::Argument("the descriptor is not open"))?;
        self.register(Deferred::closing(fd, move || file::close_if(fd, file)))
    }

    /// Takes back a descriptor that [`Request::own_fd`] has given to the request: it stays as it is. False if the request does not own it.
    ///
    /// # Errors
    ///
    /// [`Error::NotInRequest`].
    pub fn disown_fd(&self, fd: RawFd) -> Result<bool, Error> {
        let thread = self.thread()?;
        thread.reject_reentry();
        // Freed outside.
        let taken = thread.critical(|| thread.exclusive(|| thread.state().disown(fd)));
        Ok(taken.is_some())
    }

    fn register(&self, deferred: Deferred) -> Result<(), Error> {
        let thread = self.thread()?;
        thread.reject_reentry();
        // What is refused is dropped outside: it is the server's.
        let mut deferred = Some(deferred);
        thread.critical(|| thread.exclusive(|| thread.state().defer(&mut deferred)))
    }

    /// Memory that is gone when the request ends; each thread of the request has its own, which is
    /// gone when the thread has left, or the task's step is over; or later ([`crate::Options::keep_arena`]).
    #[must_use]
    pub fn arena(&self) -> &Arena {
        self.any_thread().arena()
    }

    /// Like [`Request::arena`], for callers whom no borrow keeps on the request's thread and inside
    /// of its function.
    ///
    /// # Errors
    ///
    /// [`Error::NotInRequest`].
    pub(crate) fn checked_arena(&self) -> Result<&Arena, Error> {
        self.thread().map(Thread::arena)
    }

    /// Calls the request failed: an invariant of the server does not hold.
    pub fn fail(&self, message: &str) -> ! {
        thread::fail_request(Kind::Invariant, 0, message.as_bytes())
    }
}

/// The addresses of the stack of the request that the calling thread runs; `None` where it has no request. For code that
/// looks at addresses of the stack: interpreters and parsers that limit their depth by it, garbage collectors that scan it.
#[must_use]
pub fn stack_bounds() -> Option<Range<*const u8>> {
    let thread = working().filter(|thread| thread.can_divert())?;
    let stack = thread.stack_region()?;
    Some(stack.low().cast_const()..stack.top().cast_const())
}

#[cfg(test)]
mod tests;
