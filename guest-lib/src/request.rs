//! One request: from its begin to its commit, or to its failure.

use crate::arena::Arena;
use crate::audit::{audit, audit_all};
use crate::clib;
use crate::domain::Domain;
use crate::error::Error;
use crate::evidence;
use crate::failure::{Failure, Kind};
use crate::heap::Damage;
use crate::lock;
use crate::signal;
use crate::thread::{self, Deferred, Phase, Thread};
use std::any::Any;
use std::cell::Cell;
use std::ffi::c_void;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};
use std::time::Duration;
use vmsrs_protocol::NONE;

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

/// A running request. It exists on its own thread, until its function returns.
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

    /// The thread, if this is its running request.
    fn thread(&self) -> Result<&'static Thread, Error> {
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

    /// Locks a shared domain and opens an atomic section on it. The order in which domains are
    /// entered is the server's affair; it should be the same in all requests.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyHeld`] (sections do not nest), [`Error::Limit`], [`Error::OtherApp`],
    /// [`Error::LockTimeout`], [`Error::Layout`], [`Error::System`], [`Error::NotInRequest`].
    pub fn enter(&self, domain: &'static Domain) -> Result<Entered<'_>, Error> {
        self.enter_unguarded(domain)?;
        Ok(Entered {
            request: self,
            domain,
        })
    }

    pub(crate) fn enter_unguarded(&self, domain: &'static Domain) -> Result<(), Error> {
        let thread = self.thread()?;
        if !ptr::eq(thread.app(), domain.app()) {
            return Err(Error::OtherApp);
        }
        thread.critical(|| {
            lock::lock(thread, domain, thread.lock_timeout_ms())?;
            let has_heap = domain
                .check_layout()
                .inspect_err(|_| lock::unlock(thread, domain.number()))?;
            thread.note_domain(domain, has_heap);
            Ok(())
        })
    }

    pub(crate) fn leave_unguarded(&self, domain: &'static Domain) -> Result<(), Error> {
        let thread = self.thread()?;
        if !ptr::eq(thread.app(), domain.app()) || !thread.holds(domain.number()) {
            return Err(Error::NotHeld);
        }
        if ptr::eq(self.domain(), domain) {
            return Err(Error::MainDomain);
        }
        audited(thread, |thread| audit(thread, domain));
        thread.critical(|| {
            if thread.has_drafts() {
                let backend = thread.app().backend();
                backend
                    .commit(thread.tag(), domain.number(), false)
                    .map_err(|error| refused_commit(thread, error))?;
            }
            thread.forget_domain(domain);
            lock::unlock(thread, domain.number());
            Ok(())
        })
    }

    /// Commits everything that the request wrote so far, and waits for the host's seal if `seal`.
    /// The request goes on with its domains; its defers are forgotten.
    ///
    /// # Errors
    ///
    /// [`Error::Unsealed`] (committed all the same), [`Error::System`], [`Error::NotInRequest`].
    pub fn commit(&self, seal: bool) -> Result<(), Error> {
        let thread = self.thread()?;
        audited(thread, audit_all);
        let sealed = thread.critical(|| commit_all(thread, seal));
        if matches!(sealed, Ok(()) | Err(Error::Unsealed)) {
            thread.forget_defers();
        }
        sealed
    }

    /// Registers work that undoes something outside of domains, in case the request fails or is
    /// given up; the newest runs first. It runs outside of the request: it cannot write to domains,
    /// and errors in it are suppressed and counted.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`] after 256 of them, [`Error::NotInRequest`].
    pub fn defer(&self, undo: impl FnOnce() + 'static) -> Result<(), Error> {
        type Undo = Box<dyn FnOnce()>;
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
        self.thread()?.defer(Deferred {
            call,
            argument: Box::into_raw(undo).cast(),
            discard: Some(discard),
        })
    }

    pub(crate) fn defer_raw(
        &self,
        call: unsafe extern "C-unwind" fn(*mut c_void),
        argument: *mut c_void,
    ) -> Result<(), Error> {
        self.thread()?.defer(Deferred {
            call,
            argument,
            discard: None,
        })
    }

    /// Memory that is gone when the request ends.
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

/// How a request ended when nothing it wrote was kept by its own choice.
#[derive(Debug)]
pub(crate) enum Stop {
    Failed(Box<Failure>),
    Refused(Error),
}

impl Stop {
    fn failed(thread: &Thread) -> Self {
        Self::Failed(Box::new(recover(thread)))
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// How the function ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Cut,
    Keep,
    GiveUp,
    Forked,
}

struct Call<'a> {
    thread: &'a Thread,
    body: &'a mut dyn FnMut(&Request) -> bool,
    outcome: Outcome,
}

/// Without protection nobody counts drafts, and the audit is cheap: it always takes place.
fn needs_audit(thread: &Thread) -> bool {
    thread.has_drafts() || !thread.app().backend().protects() || !thread.is_whole()
}

/// Audits from inside of the request, which fails with what is found.
fn audited(thread: &Thread, audit: impl FnOnce(&Thread) -> Result<(), Damage>) {
    if needs_audit(thread)
        && let Err(damage) = audit(thread)
    {
        thread::fail_request(damage.kind, damage.address, &[]);
    }
}

/// Runs `body` as a request; it says whether what it wrote is kept.
pub(crate) fn run(
    domain: &'static Domain,
    options: &Options,
    body: &mut dyn FnMut(&Request) -> bool,
) -> Result<(), Stop> {
    if thread::current().is_some() {
        return Err(Error::Nested.into());
    }
    let thread = thread::of(domain.app())?;
    let milliseconds = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX).max(1);
    let deadline = options.deadline.map(milliseconds);
    let patience = options.lock_timeout.map(milliseconds).or(deadline);
    let patience = patience.unwrap_or(lock::TIMEOUT_MS);
    thread.begin(deadline.unwrap_or(0), patience)?;
    thread.set_whole_audit(options.audit == Audit::Whole);
    let entered = lock::lock(thread, domain, patience).and_then(|()| {
        domain
            .check_layout()
            .inspect_err(|_| lock::unlock(thread, domain.number()))
    });
    let has_heap = match entered {
        Ok(has_heap) => has_heap,
        Err(_) if thread.is_pending() => {
            thread.note_failure(Kind::Deadline, 0, &[]);
            return Err(Stop::failed(thread));
        }
        Err(error) => {
            thread.end();
            thread.rest();
            return Err(error.into());
        }
    };
    thread.note_domain(domain, has_heap);
    thread.request().domain.set(Some(domain));
    let mut call = Call {
        thread,
        body,
        outcome: Outcome::Cut,
    };
    let argument = (&raw mut call).cast();
    // SAFETY: the request stack is free, since requests do not nest; enter() does not unwind. What
    // the body leaves half done when it is cut short is what App::open's contract is about.
    let cut = unsafe { thread.on_request_stack(enter, argument) };
    if call.outcome == Outcome::Forked {
        return Err(Error::Forked.into());
    }
    thread.set_phase(Phase::Ending);
    if cut {
        return Err(Stop::failed(thread));
    }
    match call.outcome {
        Outcome::Cut => Err(Stop::failed(thread)),
        Outcome::Keep => finish(thread, options.seal),
        Outcome::GiveUp | Outcome::Forked => {
            give_up(thread);
            Ok(())
        }
    }
}

/// First function on the request stack.
unsafe extern "C" fn enter(argument: *mut c_void) {
    // SAFETY: run() passes its call, which lives until this returns or is cut short.
    let call = unsafe { &mut *argument.cast::<Call<'_>>() };
    let thread = call.thread;
    thread.set_phase(Phase::Running);
    thread.act_on_pending();
    let body = &mut *call.body;
    let ended = catch_unwind(AssertUnwindSafe(|| body(thread.request())));
    if thread.is_forgotten() {
        call.outcome = Outcome::Forked;
        return;
    }
    call.outcome = match ended {
        Ok(false) => Outcome::GiveUp,
        Ok(true) if !needs_audit(thread) => Outcome::Keep,
        Ok(true) => match audit_all(thread) {
            Ok(()) => Outcome::Keep,
            Err(damage) => {
                thread.note_failure(damage.kind, damage.address, &[]);
                Outcome::Cut
            }
        },
        Err(payload) => {
            thread.note_failure(Kind::Panic, 0, panic_text(&*payload).as_bytes());
            // Whatever the payload's destructor does, the request has failed.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
            Outcome::Cut
        }
    };
    thread.set_phase(Phase::Ending);
}

/// What a panic said.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> &str {
    match (
        payload.downcast_ref::<&str>(),
        payload.downcast_ref::<String>(),
    ) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "",
    }
}

/// A commit that the driver refuses because the request has failed meanwhile fails it here too.
fn refused_commit(thread: &Thread, error: std::io::Error) -> Error {
    if error.raw_os_error() == Some(libc::ESTALE) && thread.phase() == Phase::Running {
        thread::fail_request(Kind::Deadline, 0, &[]);
    }
    Error::system("committing")(error)
}

fn commit_all(thread: &Thread, seal: bool) -> Result<(), Error> {
    if !thread.has_drafts() {
        return Ok(());
    }
    let backend = thread.app().backend();
    match backend.commit(thread.tag(), NONE, seal) {
        Err(error) if error.raw_os_error() == Some(libc::ETIMEDOUT) && seal => {
            thread.clear_drafts();
            Err(Error::Unsealed)
        }
        Err(error) => Err(refused_commit(thread, error)),
        Ok(()) => {
            thread.clear_drafts();
            Ok(())
        }
    }
}

/// Unlocks everything, newest first.
fn unlock_all(thread: &Thread) {
    while let Some(&domain) = thread.held().last() {
        lock::unlock(thread, domain);
    }
}

/// The good end.
fn finish(thread: &Thread, seal: bool) -> Result<(), Stop> {
    let committed = commit_all(thread, seal);
    if let Err(Error::System { source, .. }) = &committed {
        if source.raw_os_error() == Some(libc::ESTALE) {
            thread.note_failure(Kind::Deadline, 0, &[]);
            return Err(Stop::failed(thread));
        }
        discard(thread);
    }
    unlock_all(thread);
    thread.end();
    match committed {
        Ok(()) | Err(Error::Unsealed) => thread.forget_defers(),
        Err(_) => {
            run_defers(thread);
        }
    }
    thread.rest();
    Ok(committed?)
}

/// The end that the function asked for.
fn give_up(thread: &Thread) {
    discard(thread);
    unlock_all(thread);
    thread.end();
    run_defers(thread);
    thread.rest();
}

fn discard(thread: &Thread) {
    if thread.has_drafts()
        && let Err(error) = thread.app().backend().discard(thread.tag())
    {
        give_in("cannot discard what the request wrote", &error);
    }
}

/// What the request wrote can be neither kept nor taken back: only the process's end, which discards
/// it as well, keeps the promise.
fn give_in(what: &str, error: &std::io::Error) -> ! {
    signal::say(b"vmsrs: ");
    signal::say(what.as_bytes());
    signal::say(b": ");
    give_in_because(error.to_string().as_bytes());
}

/// Ends the process: nothing else is left that keeps the promises.
fn give_in_because(what: &[u8]) -> ! {
    signal::say(what);
    signal::say(b"; the process ends, committed domains are whole\n");
    signal::end_process()
}

/// The bad end: discard, free the locks, report, run the defers.
fn recover(thread: &Thread) -> Failure {
    thread.repair_control();
    let mut record = thread.record();
    record.tag = thread.tag();
    evidence::attach(&mut record, thread.stack_region(), thread.message());
    loop {
        match thread.app().backend().fail(&mut record, thread.held()) {
            Ok(()) => break,
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) => give_in("cannot discard what the failed request wrote", &error),
        }
    }
    signal::unblock();
    if clib::is_suspect(record.signal, record.registers[16]) && !clib::heap_works(thread) {
        give_in_because(b"vmsrs: the C library's heap is damaged or stays locked");
    }
    let message = String::from_utf8_lossy(thread.message()).into_owned();
    thread.end();
    let defers_failed = run_defers(thread);
    thread.rest();
    Failure {
        kind: Kind::from_number(record.kind).unwrap_or(Kind::Memory),
        incident: record.incident,
        address: record.address,
        instruction: record.registers[16],
        signal: record.signal,
        code: record.code,
        drafts: record.drafts,
        recovery: Duration::from_nanos(record.recovery_ns),
        defers_failed,
        message,
    }
}

struct Undo<'a> {
    thread: &'a Thread,
    deferred: Option<Deferred>,
    done: bool,
}

/// Runs the defers, newest first, each on the request stack so that an error in one ends that one
/// alone. Returns how many did not end well.
fn run_defers(thread: &Thread) -> u32 {
    let mut failed = 0;
    while let Some(deferred) = thread.newest_defer() {
        let mut undo = Undo {
            thread,
            deferred: Some(deferred),
            done: false,
        };
        // SAFETY: the request stack is free; enter_defer() does not unwind.
        let cut = unsafe { thread.on_request_stack(enter_defer, (&raw mut undo).cast()) };
        thread.set_phase(Phase::Ending);
        // Cut short, what it owns is in an unknown state, and stays.
        std::mem::forget(undo.deferred.take());
        if cut || !undo.done {
            failed += 1;
        }
    }
    failed
}

unsafe extern "C" fn enter_defer(argument: *mut c_void) {
    // SAFETY: run_defers() passes this, which lives until this returns or is cut short.
    let undo = unsafe { &mut *argument.cast::<Undo<'_>>() };
    let thread = undo.thread;
    if let Some(deferred) = undo.deferred.take() {
        let (call, argument) = (deferred.call, deferred.argument);
        std::mem::forget(deferred);
        thread.set_phase(Phase::Deferring);
        // SAFETY: whoever made it says that it may be called with its argument, once.
        let ended = catch_unwind(AssertUnwindSafe(|| unsafe { call(argument) }));
        undo.done = ended.is_ok();
    }
    thread.set_phase(Phase::Ending);
}
