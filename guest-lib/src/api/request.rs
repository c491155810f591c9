//! One request: from its begin to its commit, or to its failure.

use crate::api::domain::Domain;
use crate::api::ticket::Ticket;
use crate::error::Error;
use crate::failure::Kind;
use crate::os::clock;
use crate::run::audit::{audit, audit_all};
use crate::run::defer::Deferred;
use crate::run::lock;
use crate::run::{audited, commit_all, refused_commit};
use crate::thread::arena::Arena;
use crate::thread::{self, Phase, Thread};
use std::cell::Cell;
use std::ffi::c_void;
use std::fmt;
use std::ptr::{self, NonNull};
use std::time::Duration;
use vmsrs_protocol::shared::HELD_MAX;

/// What the audit looks at in each domain before it is committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Audit {
    /// The pages that the request has written, and all of a domain with at most 64 blocks: what it costs
    /// grows with what was written.
    #[default]
    Written,
    /// All of the domain: what it costs grows with the domain.
    Whole,
}

/// How a request is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Return when the host has sealed the commit, so that it outlives even the guest's kernel.
    pub seal: bool,
    /// How long the request may take; it fails with [`Kind::Deadline`] after that. Watched by the
    /// driver in steps of some 10 ms; without protection nobody watches.
    pub deadline: Option<Duration>,
    /// How long to wait for a domain's lock; the deadline or 10 s if not given.
    pub lock_timeout: Option<Duration>,
    /// What the audit looks at.
    pub audit: Audit,
}

/// A running request, as one of its threads has it: on that thread, until its function returns.
pub struct Request {
    thread: NonNull<Thread>,
    domain: Cell<Option<&'static Domain>>,
}

impl fmt::Debug for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Request")
            .field("domain", &self.domain.get())
            .finish_non_exhaustive()
    }
}

/// A shared domain that the request has entered. Dropping it leaves the domain: what was written is
/// committed and others can enter. To keep the domain to the end of the request, [`Entered::keep`]
/// it.
#[derive(Debug)]
#[must_use = "dropping it leaves the domain at once"]
pub struct Entered<'request> {
    request: &'request Request,
    domain: &'static Domain,
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
        if !std::thread::panicking() {
            // On an error the domain stays held, and commits or fails with the request.
            let _ = self.request.leave_unguarded(self.domain);
        }
    }
}

impl Request {
    pub(crate) fn new(thread: NonNull<Thread>) -> Self {
        Self {
            thread,
            domain: Cell::new(None),
        }
    }

    pub(crate) fn set_domain(&self, domain: Option<&'static Domain>) {
        self.domain.set(domain);
    }

    /// The thread, if this is its running request.
    pub(crate) fn thread(&self) -> Result<&'static Thread, Error> {
        thread::current()
            .filter(|thread| {
                ptr::eq(*thread, self.thread.as_ptr()) && thread.phase() == Phase::Running
            })
            .ok_or(Error::NotInRequest)
    }

    /// The domain that the request was begun with.
    ///
    /// # Panics
    ///
    /// When the request is over, which only a copy smuggled out of its function can see.
    #[must_use]
    pub fn domain(&self) -> &'static Domain {
        self.domain.get().expect("the request is running")
    }

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
    /// order in which domains are entered is the server's affair. When waiting would never end,
    /// since requests wait for each other in a circle, one of them is told
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
        })
    }

    /// Locks several shared domains, in an order of its own that is the same in all requests, and
    /// holds them to the end of the request or to [`Request::leave`]. Domains that the request holds
    /// already, or that are named twice, are no error; one that another thread of the request waits for is
    /// waited for as well.
    ///
    /// Requests that enter all they need by one such call cannot wait for each other in a circle,
    /// unless by the domain that they began with.
    ///
    /// # Errors
    ///
    /// As [`Request::enter`]; what this call has locked before is left again, and nothing else. Another
    /// thread of the request that found it locked loses it with that.
    pub fn enter_all(&self, domains: &[&'static Domain]) -> Result<(), Error> {
        // By number, without a copy on any heap: the next one above the last.
        let above = |last: Option<u32>| {
            let rest = domains.iter().copied();
            rest.filter(|domain| last.is_none_or(|last| domain.number() > last))
                .min_by_key(|domain| domain.number())
        };
        let mut last = None;
        // Other threads of the request enter and leave domains meanwhile, so these are not just its newest.
        let mut entered = [None; HELD_MAX];
        let mut places = entered.iter_mut();
        while let Some(domain) = above(last) {
            match self.enter_or_share(domain) {
                // A request holds no more than there are places.
                Ok(true) => places
                    .next()
                    .into_iter()
                    .for_each(|place| *place = Some(domain)),
                Ok(false) => {}
                Err(error) => {
                    for domain in entered.iter().rev().flatten() {
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
        thread.refuse_amid();
        thread.critical(|| {
            lock::lock(thread, domain, thread.lock_timeout_ms())?;
            let has_heap = domain
                .check_layout()
                .inspect_err(|_| lock::unlock(thread, domain.number()))?;
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
                    .commit(thread.tag(), domain.number(), false)
                    .map_err(|error| {
                        thread.state().note_domain(domain, has_heap);
                        refused_commit(thread, error)
                    })?;
            }
            lock::unlock(thread, domain.number());
            Ok(())
        };
        audited(thread, |thread| audit(thread, domain), commit)
    }

    /// A ticket, by which other threads can work for this request.
    ///
    /// # Errors
    ///
    /// [`Error::NotInRequest`].
    pub fn ticket(&self) -> Result<Ticket, Error> {
        let thread = self.thread()?;
        Ok(Ticket::new(thread.state(), self.domain()))
    }

    /// Runs code of the library that interrupts must not cut short.
    pub(crate) fn critical<T>(&self, code: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        self.thread()?.critical(code)
    }

    /// Commits everything that the request wrote so far, and waits for the host's seal if `seal`.
    /// The request goes on with its domains; its defers are forgotten. That is everything that all
    /// threads of the request wrote so far, also what one is in the middle of: let the others come to
    /// rest before. The heaps are whole all the same: a thread that takes or gives back a block meanwhile
    /// waits for the commit.
    ///
    /// # Errors
    ///
    /// [`Error::Unsealed`] (committed all the same), [`Error::System`], [`Error::NotInRequest`].
    pub fn commit(&self, seal: bool) -> Result<(), Error> {
        let thread = self.thread()?;
        // What is committed is not undone any more, whatever happens from here on; so its defers are taken
        // away with it. They are dropped as part of the request: they are the server's.
        let mut forgotten = Vec::new();
        audited(thread, audit_all, || {
            forgotten.reserve_exact(thread.state().defers());
            let committed = commit_all(thread, seal);
            if matches!(committed, Ok(()) | Err(Error::Unsealed)) {
                thread.state().take_defers(&mut forgotten);
            }
            committed
        })
    }

    /// Registers work that undoes something outside of domains, in case the request fails or is
    /// given up; the newest runs first. It runs on the thread that ends the request, outside of it: it cannot write to domains,
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

    fn register(&self, deferred: Deferred) -> Result<(), Error> {
        let thread = self.thread()?;
        thread.refuse_amid();
        // What is refused is dropped outside: it is the server's.
        let mut deferred = Some(deferred);
        thread.critical(|| thread.exclusive(|| thread.state().defer(&mut deferred)))
    }

    /// Memory that is gone when the request ends; each thread of the request has its own, which is
    /// gone when the thread has left, or the task's step is over.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        // SAFETY: the thread that owns this request outlives it.
        unsafe { self.thread.as_ref() }.arena()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::RunError;
    use crate::mock::Hooked;
    use crate::shared::control::Control;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::sync::{Arc, Mutex, mpsc};

    type Piece<'a> = Box<dyn FnOnce(&Request) + Send + 'a>;

    /// A request that holds the domain until the sender is dropped.
    fn hold(domain: &'static Domain) -> (mpsc::Sender<()>, std::thread::JoinHandle<()>) {
        let (held, is_held) = mpsc::channel();
        let (free, is_free) = mpsc::channel::<()>();
        let holder = std::thread::spawn(move || {
            let outcome = domain.run(|_| {
                held.send(()).unwrap();
                let _ = is_free.recv();
                Ok::<_, Error>(())
            });
            outcome.unwrap();
        });
        is_held.recv().unwrap();
        (free, holder)
    }

    /// Fails the calling thread's request as another thread of it does, in the middle of what it does.
    fn fail_from_outside() {
        let thread = thread::current().unwrap();
        // SAFETY: the thread is registered.
        unsafe { Control::new(thread.control()) }.set_failed(thread.tag());
        // SAFETY: the library's own signal.
        unsafe { libc::raise(crate::os::signals::interrupt()) };
    }

    #[test]
    fn what_a_commit_in_the_middle_keeps_is_not_undone_even_if_the_request_fails_in_that_call() {
        let app = Hooked::app("fails in a commit", |hooks| {
            hooks.commit = Box::new(|_, _| {
                fail_from_outside();
                Ok(())
            });
        });
        let domain = app.domain("one").unwrap();
        let undone = Arc::new(AtomicU32::new(0));
        let undo = Arc::clone(&undone);
        let outcome: Result<(), RunError<Error>> = domain.run(|request| {
            request.defer(move || {
                undo.fetch_add(1, Ordering::SeqCst);
            })?;
            thread::current().unwrap().state().note_drafts();
            request.commit(true)?;
            unreachable!("the request has failed")
        });
        assert!(matches!(outcome, Err(RunError::Failed(_))), "{outcome:?}");
        assert_eq!(undone.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_request_that_fails_after_a_commit_undoes_what_came_behind_it() {
        let app = Hooked::app("fails behind a commit", |_| ());
        let domain = app.domain("one").unwrap();
        let undone = Arc::new(Mutex::new(Vec::new()));
        let undo = |number| {
            let undone = Arc::clone(&undone);
            move || undone.lock().unwrap().push(number)
        };
        let outcome: Result<(), RunError<Error>> = domain.run(|request| {
            request.defer(undo(1))?;
            request.commit(false)?;
            request.defer(undo(2))?;
            request.defer(undo(3))?;
            request.fail("this request fails")
        });
        assert!(matches!(outcome, Err(RunError::Failed(_))), "{outcome:?}");
        assert_eq!(*undone.lock().unwrap(), [3, 2]);
    }

    /// Something a defer owns that does this when it is dropped.
    struct Dropped(fn());

    impl Drop for Dropped {
        fn drop(&mut self) {
            (self.0)();
        }
    }

    #[test]
    fn what_a_defer_that_is_one_too_many_owns_may_use_the_library_when_it_is_dropped() {
        let app = Hooked::app("too many defers", |_| ());
        let domain = app.domain("one").unwrap();
        domain
            .run(|request| {
                for _ in 0..crate::run::defer::DEFERS_MAX {
                    request.defer(|| ())?;
                }
                let broken = Dropped(|| {
                    let thread = thread::current().unwrap();
                    thread.request().alloc(1u8).map(drop).unwrap();
                });
                let refused = request.defer(move || drop(broken));
                assert!(matches!(refused, Err(Error::Limit(_))), "{refused:?}");
                Ok::<_, Error>(())
            })
            .unwrap();
    }

    #[test]
    fn an_error_in_dropping_a_defer_that_is_forgotten_ends_neither_the_request_nor_the_thread() {
        let app = Hooked::app("forgotten defers", |_| ());
        let domain = app.domain("one").unwrap();
        let errors: [fn(); 2] = [
            || panic!("dropped"),
            // SAFETY: it is not; that is the test.
            || unsafe { std::hint::black_box(ptr::null_mut::<u32>()).write_volatile(1) },
        ];
        for error in errors {
            let dropped = Arc::new(());
            let (broken, whole) = (Dropped(error), Arc::clone(&dropped));
            let outcome = domain.run(|request| {
                request.defer(move || drop(whole))?;
                request.defer(move || drop(broken))?;
                Ok::<_, Error>(7)
            });
            assert_eq!(outcome.unwrap(), 7);
            assert_eq!(Arc::strong_count(&dropped), 1);
            domain.run(|request| request.alloc(1u8).map(drop)).unwrap();
        }
    }

    #[test]
    fn a_thread_that_cannot_enter_all_leaves_what_it_entered_and_nothing_of_another_thread() {
        for refusal in [libc::ETIMEDOUT, libc::EDEADLK] {
            let (waits, is_waiting) = mpsc::channel();
            let (go_on, may_go_on) = mpsc::channel();
            let may_go_on = Mutex::new(may_go_on);
            let committed = Arc::new(Mutex::new(Vec::new()));
            let commits = Arc::clone(&committed);
            let app = Hooked::app(&format!("enter all, refused with {refusal}"), |hooks| {
                hooks.lock_wait = Box::new(move |_, _| {
                    waits.send(()).unwrap();
                    may_go_on.lock().unwrap().recv().unwrap();
                    Some(Err(std::io::Error::from_raw_os_error(refusal)))
                });
                hooks.commit = Box::new(move |_, domain| {
                    commits.lock().unwrap().push(domain);
                    Ok(())
                });
            });
            let [main, x, y, z] = ["main", "x", "y", "z"].map(|key| app.domain(key).unwrap());
            let (free, holder) = hold(y);
            let (refused, is_refused) = mpsc::channel();
            main.run(|request| {
                let enters_all: Piece<'_> = Box::new(move |request| {
                    let outcome = request.enter_all(&[x, y]);
                    assert!(
                        matches!(
                            outcome,
                            Err(Error::LockTimeout { .. } | Error::WouldDeadlock)
                        ),
                        "{outcome:?}"
                    );
                    refused.send(()).unwrap();
                });
                let committed = Arc::clone(&committed);
                let is_busy: Piece<'_> = Box::new(move |request| {
                    is_waiting.recv().unwrap();
                    request.enter(z).unwrap().keep();
                    go_on.send(()).unwrap();
                    is_refused.recv().unwrap();
                    let state = thread::current().unwrap().state();
                    let held = thread::current()
                        .unwrap()
                        .exclusive(|| [x, y, z].map(|domain| state.holds(domain)));
                    assert_eq!(held, [false, false, true]);
                    assert_eq!(lock::holder(z), state.tag());
                    assert_eq!(lock::holder(x), 0);
                    assert!(!committed.lock().unwrap().contains(&z.number()));
                });
                request.fan_out(vec![enters_all, is_busy]).map(drop)
            })
            .unwrap();
            drop(free);
            holder.join().unwrap();
        }
    }

    #[test]
    fn enter_all_does_not_return_before_the_request_holds_what_another_thread_waits_for() {
        let (waits, is_waiting) = mpsc::channel();
        let app = Hooked::app("enter all, waited for by another", |hooks| {
            hooks.lock_wait = Box::new(move |_, _| {
                waits.send(()).unwrap();
                None
            });
        });
        let [main, y] = ["main", "y"].map(|key| app.domain(key).unwrap());
        let (free, holder) = hold(y);
        let has_returned = AtomicBool::new(false);
        let has_returned = &has_returned;
        main.run(|request| {
            let state = thread::current().unwrap().state();
            let enters: Piece<'_> = Box::new(move |request| {
                request.enter(y).unwrap().keep();
            });
            let enters_all: Piece<'_> = Box::new(move |request| {
                is_waiting.recv().unwrap();
                let outcome = request.enter_all(&[y]);
                let holder = lock::holder(y);
                has_returned.store(true, Ordering::SeqCst);
                outcome.unwrap();
                assert_eq!(holder, state.tag());
            });
            let lets_go: Piece<'_> = Box::new(move |_| {
                while state.held_waiters() == 0 && !has_returned.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                drop(free);
            });
            request.fan_out(vec![enters, enters_all, lets_go]).map(drop)
        })
        .unwrap();
        holder.join().unwrap();
    }

    #[test]
    fn no_member_changes_a_heap_while_another_commits_it_or_leaves_its_domain() {
        const MEMBERS: usize = 3;
        const COMMITS: u32 = 50;
        static DOMAINS: std::sync::OnceLock<[&Domain; 2]> = std::sync::OnceLock::new();
        let (commits, changed) = (
            Arc::new(AtomicU32::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (count, saw) = (Arc::clone(&commits), Arc::clone(&changed));
        let app = Hooked::app("commit with members", |hooks| {
            hooks.commit = Box::new(move |_, _| {
                let bookkeeping = || DOMAINS.get().unwrap().map(Domain::bookkeeping);
                let before = bookkeeping();
                for _ in 0..20 {
                    std::thread::yield_now();
                }
                if bookkeeping() != before {
                    saw.store(true, Ordering::SeqCst);
                }
                count.fetch_add(1, Ordering::SeqCst);
                Ok(())
            });
        });
        let [main, shared] = ["main", "shared"].map(|key| app.domain(key).unwrap());
        DOMAINS.set([main, shared]).unwrap();
        let over = AtomicBool::new(false);
        let over = &over;
        main.run(|request| {
            let busy = (0..MEMBERS).map(|_| {
                Box::new(move |_: &Request| {
                    while !over.load(Ordering::SeqCst) {
                        for domain in [main, shared] {
                            match domain.allocate(100, 16) {
                                // SAFETY: live, and used no more. Left meanwhile, it stays.
                                Ok(block) => drop(unsafe { domain.deallocate(block) }),
                                Err(error) => assert!(matches!(error, Error::NotHeld)),
                            }
                        }
                    }
                }) as Box<dyn FnOnce(&Request) + Send>
            });
            let commits = |request: &Request| {
                for round in 0..COMMITS {
                    if round % 2 == 0 {
                        request.commit(false).unwrap();
                    } else {
                        request.enter(shared).unwrap().leave().unwrap();
                    }
                }
                over.store(true, Ordering::SeqCst);
            };
            let mut pieces: Vec<_> = busy.collect();
            pieces.push(Box::new(commits));
            request.fan_out(pieces).map(drop)
        })
        .unwrap();
        assert_eq!(commits.load(Ordering::SeqCst), COMMITS + 1);
        assert!(!changed.load(Ordering::SeqCst), "changed while committed");
        for domain in [main, shared] {
            let whole = Options {
                audit: Audit::Whole,
                ..Options::default()
            };
            domain
                .run_with(&whole, |request| request.alloc(1u8).map(drop))
                .unwrap();
        }
    }

    #[test]
    fn a_request_that_overwrites_its_count_of_drafts_is_committed_all_the_same() {
        let commits = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&commits);
        let app = Hooked::app("count of drafts", |hooks| {
            hooks.commit = Box::new(move |_, _| {
                count.fetch_add(1, Ordering::SeqCst);
                Ok(())
            });
        });
        let domain = app.domain("one").unwrap();
        domain.run(|_| Ok::<_, Error>(())).unwrap();
        assert_eq!(commits.load(Ordering::SeqCst), 0, "nothing was written");
        // What the driver writes with the first draft, and what a stray write makes of it.
        for (drafts, complement) in [(1, !1), (0, !1), (0, 0), (1, u32::MAX), (u32::MAX, 0)] {
            commits.store(0, Ordering::SeqCst);
            domain
                .run(|_| {
                    let control = thread::current().unwrap().control().as_ptr();
                    // SAFETY: the calling thread's.
                    unsafe {
                        (&raw mut (*control).drafts).write_volatile(drafts);
                        (&raw mut (*control).drafts_complement).write_volatile(complement);
                    }
                    Ok::<_, Error>(())
                })
                .unwrap();
            assert_eq!(
                commits.load(Ordering::SeqCst),
                1,
                "{drafts:#x} {complement:#x}"
            );
        }
    }

    #[test]
    fn the_driver_does_not_hold_the_last_commit_to_the_deadline_which_holds_until_then() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let deadlines = Arc::clone(&seen);
        let app = Hooked::app("deadline of commits", |hooks| {
            hooks.commit = Box::new(move |_, _| {
                let control = thread::current().unwrap().control().as_ptr();
                // SAFETY: the calling thread's.
                let deadline = unsafe { (&raw mut (*control).deadline_ns).read_volatile() };
                deadlines.lock().unwrap().push(deadline != 0);
                Ok(())
            });
        });
        let domain = app.domain("one").unwrap();
        let options = Options {
            deadline: Some(Duration::from_secs(60)),
            ..Options::default()
        };
        domain
            .run_with(&options, |request| {
                let control = thread::current().unwrap().control().as_ptr();
                // SAFETY: the calling thread's; as the driver does for a first draft.
                unsafe { (&raw mut (*control).drafts).write_volatile(1) };
                request.commit(false)?;
                // SAFETY: as above.
                unsafe { (&raw mut (*control).drafts).write_volatile(1) };
                Ok::<_, Error>(())
            })
            .unwrap();
        assert_eq!(*seen.lock().unwrap(), [true, false]);
    }
}
