//! A thread of the server, as the library knows it: control block, request stack, signal stack, and
//! which request it works for.
//!
//! A thread is registered by its first request and unregistered when it ends. Its memory lies in a
//! mapping of its own between guards, away from the C library's heap.

use crate::alarm::Alarm;
use crate::app::App;
use crate::arena::Arena;
use crate::backend::Tags;
use crate::control::Control;
use crate::error::Error;
use crate::failure::Kind;
use crate::pkru;
use crate::record::{self, Record};
use crate::region::Region;
use crate::request::{Audit, Options, Request};
use crate::stack::Stack;
use crate::state::{Start, State};
use crate::{clib, evidence, run, signal, switch};
use std::cell::{Cell, RefCell, UnsafeCell};
use std::ffi::c_void;
use std::mem::size_of;
use std::ptr::{self, NonNull};
use std::sync::atomic::{Ordering, compiler_fence};
use std::time::Duration;
use vmsrs_protocol::incident::REGISTERS;
use vmsrs_protocol::ioctl::IoctlFail;

/// Bytes of the stack that signal handlers run on.
const SIGNAL_STACK: usize = 64 * 1024;

/// What the failure says of a request that waits for itself: a handler of a signal, or a wild jump.
const AMID: &[u8] = b"the library was called in the middle of its own work";

/// What a thread does; tells the signal handler what an error means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No request.
    Idle,
    /// A request begins, or is joined; the server's stack.
    Entering,
    /// The request's function, or the audit behind it; the request stack.
    Running,
    /// The request ends, or is left; the server's stack.
    Ending,
    /// A defer of a failed request; the request stack.
    Deferring,
}

/// One thread in one app.
pub(crate) struct Thread {
    app: &'static App,
    control: Control,
    tags: Cell<Tags>,
    /// The state of requests that it begins.
    own: &'static State,
    /// The state of the request that it works for; its own when there is none.
    state: Cell<&'static State>,
    /// Its slot, if it has joined that request.
    slot: Cell<Option<usize>>,
    phase: Cell<Phase>,
    /// Above 0: interrupts wait until it is 0 again.
    critical: Cell<u32>,
    /// An interrupt waits.
    pending: Cell<bool>,
    /// An error is on its way to the landing, and has not arrived.
    diverted: Cell<bool>,
    /// An invariant of the server is being checked.
    checking: Cell<bool>,
    /// The thread is inside of [`Thread::exclusive`].
    alone: Cell<bool>,
    /// The request has failed, and the thread knows: it has come to its landing.
    landed: Cell<bool>,
    /// This is a forked child's copy: the driver does not know it.
    forgotten: Cell<bool>,
    stack: Stack,
    saved: UnsafeCell<u64>,
    record: Record,
    /// `CLOCK_MONOTONIC` nanoseconds at which the request is over its deadline, or 0.
    deadline: Cell<u64>,
    /// Looks again, and for the library's own time limits.
    alarm: Alarm,
    /// Times that an interrupt has waited for the thread to leave the C library.
    waited: Cell<u32>,
    request: Request,
    arena: Arena,
    _signal_stack: Region,
    _memory: Region,
}

thread_local! {
    /// The thread whose request runs; no destructor, so that the signal handler can read it at any
    /// time.
    static CURRENT: Cell<*const Thread> = const { Cell::new(ptr::null()) };
    static MINE: Mine = const { Mine(RefCell::new(Vec::new())) };
}

/// The calling thread in each app that it has used.
struct Mine(RefCell<Vec<NonNull<Thread>>>);

impl Drop for Mine {
    fn drop(&mut self) {
        for place in self.0.get_mut().drain(..) {
            // SAFETY: written by register(); nobody else has it, and its own mapping outlives the
            // copy since a field of that copy owns it.
            let thread = unsafe { place.as_ptr().read() };
            // A request that calls exit() comes here, since a thread that ends otherwise leaves it first. What
            // runs next, the program's functions for its end, is no part of it any more.
            let in_request = ptr::eq(CURRENT.get(), place.as_ptr());
            if in_request {
                CURRENT.set(ptr::null());
                pkru::close();
            }
            thread.app.backend().unregister(thread.control.block());
            thread.own.give_back();
            if !signal::leave_signal_stack() || in_request {
                // It still runs on one of its stacks.
                std::mem::forget(thread);
            }
        }
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds. Async-signal-safe.
pub(crate) fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the structure.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The thread whose request runs here, if any. Async-signal-safe.
pub(crate) fn current() -> Option<&'static Thread> {
    // SAFETY: null, or a registered thread: it is unset when the request ends, and the thread's
    // memory stays until the thread ends.
    unsafe { CURRENT.get().as_ref() }
}

/// The calling thread in `app`, registered if it is new.
///
/// # Errors
///
/// [`Error::System`], [`Error::NotInRequest`] when the thread is about to end.
pub(crate) fn of(app: &'static App) -> Result<&'static Thread, Error> {
    let ended = || Error::NotInRequest;
    MINE.try_with(|mine| {
        let mut mine = mine.0.borrow_mut();
        for thread in mine.iter() {
            // SAFETY: registered threads stay until this thread ends.
            let thread: &'static Thread = unsafe { thread.as_ref() };
            if ptr::eq(thread.app, app) {
                return Ok(thread);
            }
        }
        mine.reserve(1);
        let thread = Thread::register(app)?;
        mine.push(thread);
        // SAFETY: as above.
        Ok(unsafe { thread.as_ref() })
    })
    .map_err(|_| ended())?
}

/// In the child of a fork: the registrations are the parent's.
pub(crate) fn forget_all() {
    if let Some(thread) = current() {
        thread.forgotten.set(true);
    }
    CURRENT.set(ptr::null());
    pkru::forget();
    // The parent's control blocks are not mapped here: the threads are left as they are.
    let _ = MINE.try_with(|mine| mine.0.try_borrow_mut().map(|mut mine| mine.clear()));
}

/// Makes the running request of the calling thread fail, from its own code. Outside of a request
/// the process is aborted with the message.
pub(crate) fn fail_request(kind: Kind, address: u64, message: &[u8]) -> ! {
    let thread = current().filter(|thread| thread.can_divert());
    let Some(thread) = thread.filter(|_| signal::suppressing()) else {
        signal::say(b"vmsrs: ");
        signal::say(kind.c_name().to_bytes());
        signal::say(b" outside of a request: ");
        signal::say(message);
        signal::say(b"\n");
        // SAFETY: ends the process.
        unsafe { libc::abort() }
    };
    thread.divert();
    thread.note_failure(kind, address, message);
    // SAFETY: can_divert() says that this runs under the thread's switch.
    unsafe { switch::leap(thread.saved.get().read()) }
}

impl Thread {
    fn register(app: &'static App) -> Result<NonNull<Self>, Error> {
        evidence::refresh();
        let memory = Region::new(size_of::<Self>())?;
        let signal_stack = Region::new(SIGNAL_STACK)?;
        let stack = Stack::take()?;
        let arena = Arena::new()?;
        let own = State::take()?;
        signal::enter_signal_stack(&signal_stack).inspect_err(|_| own.give_back())?;
        let registration = app
            .backend()
            .register(signal::interrupt())
            .inspect_err(|_| {
                signal::leave_signal_stack();
                own.give_back();
            })
            .map_err(Error::system("registering the thread"))?;
        let place = memory.place().cast::<Self>();
        // One that had a request would keep its key.
        if current().is_none() {
            pkru::close();
        }
        let thread = Self {
            app,
            // SAFETY: mapped until the thread is unregistered, which is the last thing it does.
            control: unsafe { Control::new(registration.control) },
            tags: Cell::new(registration.tags),
            own,
            state: Cell::new(own),
            slot: Cell::new(None),
            phase: Cell::new(Phase::Idle),
            critical: Cell::new(0),
            pending: Cell::new(false),
            diverted: Cell::new(false),
            checking: Cell::new(false),
            alone: Cell::new(false),
            landed: Cell::new(false),
            forgotten: Cell::new(false),
            stack,
            saved: UnsafeCell::new(0),
            record: Record::new(),
            deadline: Cell::new(0),
            alarm: Alarm::default(),
            waited: Cell::new(0),
            request: Request::new(place),
            arena,
            _signal_stack: signal_stack,
            _memory: memory,
        };
        // SAFETY: fresh memory of the right size, page-aligned.
        unsafe { place.write(thread) };
        Ok(place)
    }

    pub(crate) fn app(&self) -> &'static App {
        self.app
    }

    pub(crate) fn request(&self) -> &Request {
        &self.request
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    /// What belongs to the request that the thread works for.
    pub(crate) fn state(&self) -> &'static State {
        self.state.get()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        compiler_fence(Ordering::SeqCst);
        self.phase.set(phase);
        compiler_fence(Ordering::SeqCst);
    }

    /// Whether the thread runs on its request stack, with a landing behind it.
    pub(crate) fn can_divert(&self) -> bool {
        matches!(self.phase(), Phase::Running | Phase::Deferring)
    }

    pub(crate) fn is_forgotten(&self) -> bool {
        self.forgotten.get()
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.pending.get()
    }

    pub(crate) fn set_pending(&self, pending: bool) {
        self.pending.set(pending);
    }

    pub(crate) fn wants_whole_audit(&self) -> bool {
        self.state().wants_whole_audit()
    }

    /// Notes that an invariant is being checked: an error in it is called one of the invariant.
    pub(crate) fn set_checking(&self, checking: bool) {
        self.checking.set(checking);
    }

    pub(crate) fn is_critical(&self) -> bool {
        self.critical.get() > 0
    }

    /// Runs code of the library that interrupts must not cut short; one that came meanwhile takes
    /// effect at the end.
    pub(crate) fn critical<T>(&self, code: impl FnOnce() -> T) -> T {
        self.critical.set(self.critical.get() + 1);
        compiler_fence(Ordering::SeqCst);
        let value = code();
        compiler_fence(Ordering::SeqCst);
        self.critical.set(self.critical.get() - 1);
        self.act_on_pending();
        value
    }

    /// Runs code that uses the request's lists or heaps: one thread of the request at a time, which
    /// may come back here from inside. Comes to the landing instead if the request fails while another one has them.
    pub(crate) fn exclusive<T>(&self, code: impl FnOnce() -> T) -> T {
        if self.alone.get() {
            return code();
        }
        let state = self.state();
        // If no other thread is there, and none has left since the look before, it is this one that has them:
        // the library was called in the middle of itself.
        let (own, departures) = (Cell::new(false), Cell::new(None));
        let give_up = |for_nothing| {
            let alone = state.members.is_empty();
            let before = departures.replace(Some(state.members.departures()));
            own.set(for_nothing && alone && before == departures.get());
            self.is_doomed() || own.get() || (for_nothing && state.members.has_lost())
        };
        while !state.latch.take(give_up) {
            // Nothing was begun here yet, so even critical code can be cut short.
            if self.phase() == Phase::Running {
                if self.is_doomed() {
                    fail_request(Kind::Deadline, 0, &[]);
                }
                if own.get() {
                    fail_request(Kind::Memory, 0, AMID);
                }
                fail_request(Kind::ThreadDeath, 0, run::LOST);
            }
        }
        self.alone.set(true);
        let value = code();
        self.alone.set(false);
        state.latch.open();
        value
    }

    /// Fails the request if an interrupt waits, or another thread of it has failed.
    pub(crate) fn act_on_pending(&self) {
        if !self.is_critical() && self.phase() == Phase::Running && self.is_doomed() {
            self.set_pending(false);
            fail_request(Kind::Deadline, 0, &[]);
        }
    }

    /// Whether the request is past its deadline. Async-signal-safe.
    pub(crate) fn is_overdue(&self) -> bool {
        self.deadline.get() != 0 && now() >= self.deadline.get()
    }

    /// Whether the request has failed, by another thread of it or by the driver's word.
    /// Async-signal-safe.
    fn has_failed(&self) -> bool {
        let tag = self.state().tag();
        tag != 0
            && !self.landed.get()
            && (self.state().has_failed() || self.control.failed() == tag)
    }

    /// The thread has come to its landing: further interrupts for the request tell it nothing, and it
    /// starts no threads any more.
    pub(crate) fn land(&self) {
        self.landed.set(true);
        self.state().members.take_back();
        // An error, unlike an interrupt, cuts critical code short.
        self.critical.set(0);
        self.pending.set(false);
    }

    /// Has the interrupt come again a little later, if it has not waited too long already.
    /// Async-signal-safe.
    pub(crate) fn may_wait(&self) -> bool {
        self.waited.set(self.waited.get() + 1);
        self.waited.get() <= clib::RETRIES && self.alarm.set(signal::interrupt(), clib::RETRY)
    }

    /// Limits the time of what the library runs on the request stack next. False if the kernel has
    /// no timer.
    pub(crate) fn set_limit(&self, limit: Duration) -> bool {
        // It may hang in the C library itself.
        self.waited.set(clib::RETRIES);
        self.pending.set(false);
        self.deadline.set(now() + limit.as_nanos() as u64);
        self.alarm.set(signal::interrupt(), limit)
    }

    /// Takes the limit back.
    pub(crate) fn clear_limit(&self) {
        self.alarm.stop();
        self.deadline.set(0);
    }

    /// From here on the driver does not hold the request to its deadline.
    pub(crate) fn meet_deadline(&self) {
        self.control.set_deadline(0);
    }

    /// Whether an interrupt is for the request that the thread works for. Async-signal-safe.
    pub(crate) fn must_end(&self) -> bool {
        self.is_overdue() || self.has_failed()
    }

    fn is_doomed(&self) -> bool {
        self.is_pending() || self.has_failed()
    }

    /// Tag of the request that the thread works for, or 0.
    pub(crate) fn tag(&self) -> u64 {
        self.control.tag()
    }

    /// Whether the request may have written to domains.
    pub(crate) fn has_drafts(&self) -> bool {
        self.control.may_have_drafts() || self.state().may_have_drafts()
    }

    pub(crate) fn clear_drafts(&self) {
        self.control.clear_drafts();
    }

    pub(crate) fn lock_timeout_ms(&self) -> u32 {
        self.state().lock_timeout_ms()
    }

    #[cfg(test)]
    pub(crate) fn control(&self) -> NonNull<vmsrs_protocol::shared::ThreadControl> {
        self.control.block()
    }

    /// Whether the control block and the locks say what the library has put there. Only asked when the
    /// thread is neither taking nor releasing a lock.
    pub(crate) fn is_whole(&self) -> bool {
        let state = self.state();
        self.tag() == state.tag() && self.exclusive(|| state.is_whole())
    }

    /// Puts right what a stray write has done to the control block, before the driver acts on it.
    pub(crate) fn repair_control(&self) {
        let state = self.state();
        self.control.set_tag(state.tag());
        // Other threads of the request may be changing its lists, and one that was cut short may have the
        // latch for good: then the list stays as it is, and what is on none is released after all have left.
        if self.alone.get() {
            state.repair_control();
        } else if state.latch.take(|for_nothing| for_nothing) {
            state.repair_control();
            state.latch.open();
        }
    }

    /// Whether the thread is on its way to the landing. Async-signal-safe.
    pub(crate) fn is_diverted(&self) -> bool {
        self.diverted.get()
    }

    /// Notes that the thread is sent to its landing; false if it was before and has not arrived.
    /// Async-signal-safe.
    pub(crate) fn divert(&self) -> bool {
        !self.diverted.replace(true)
    }

    // A request's begin and end.

    /// Begins a request: from here on the driver lets it write to the domains that it locks.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when there are no tags.
    pub(crate) fn begin(&self, options: &Options) -> Result<(), Error> {
        self.begin_as(self.own, options)
    }

    /// Begins a request with a state that is not the thread's.
    ///
    /// # Errors
    ///
    /// As [`Thread::begin`].
    pub(crate) fn begin_as(&self, state: &'static State, options: &Options) -> Result<(), Error> {
        let mut tags = self.tags.get();
        if tags.next >= tags.end {
            let backend = self.app.backend();
            tags = backend.tags().map_err(Error::system("fetching tags"))?;
        }
        let tag = tags.next;
        tags.next += 1;
        self.tags.set(tags);
        state.begin(Start {
            tag,
            deadline: match options.deadline_ms() {
                0 => 0,
                limit => now() + u64::from(limit) * 1_000_000,
            },
            lock_timeout_ms: options.patience_ms(),
            whole_audit: options.audit == Audit::Whole,
        });
        self.lead(state);
        Ok(())
    }

    /// Works for a request as the one that begins or ends it, and has its list of domains.
    pub(crate) fn lead(&self, state: &'static State) {
        state.set_control(self.control);
        self.carry(state, None);
    }

    /// Works for a request that another thread leads. The thread has taken a slot.
    pub(crate) fn join(&self, state: &'static State, slot: usize) {
        state.note_drafts();
        self.carry(state, Some(slot));
    }

    fn carry(&self, state: &'static State, slot: Option<usize>) {
        self.state.set(state);
        self.slot.set(slot);
        self.pending.set(false);
        self.critical.set(0);
        self.waited.set(0);
        self.checking.set(false);
        self.alone.set(false);
        self.landed.set(false);
        self.deadline.set(state.deadline());
        self.set_phase(Phase::Entering);
        CURRENT.set(ptr::from_ref(self));
        self.clear_drafts();
        self.control.set_deadline(state.deadline());
        self.control.set_key(state.key());
        self.control.set_tag(state.tag());
        pkru::open(state.key());
    }

    /// Works for the request no longer. All ways out of one lead here, but for the child of a fork
    /// ([`forget_all`]).
    fn put_down(&self) {
        pkru::close();
        self.control.set_tag(0);
        self.control.set_deadline(0);
        self.clear_drafts();
        self.deadline.set(0);
        self.alarm.stop();
        self.alone.set(false);
        self.arena.reset();
    }

    /// Ends the request; nothing is held any more, and no other thread has joined it. `kept`: what it wrote
    /// was audited and committed.
    pub(crate) fn end(&self, kept: bool) {
        let state = self.state();
        self.put_down();
        self.clear_held();
        state.clear(kept);
    }

    /// Leaves a suspended request, which goes on without the thread.
    pub(crate) fn suspend(&self) {
        let state = self.state();
        if self.control.may_have_drafts() {
            state.note_drafts();
        }
        self.put_down();
        state.drop_control();
        self.clear_held();
    }

    fn clear_held(&self) {
        crate::held::HeldList::set_count(&self.control, 0);
    }

    /// Leaves a request that the thread has joined.
    pub(crate) fn leave(&self) {
        self.put_down();
        let (state, slot) = (self.state(), self.slot.take());
        self.rest();
        if let Some(slot) = slot {
            state.members.leave(slot);
        }
    }

    /// The thread serves a request that is over, to run its defers.
    pub(crate) fn attend(&self) {
        self.set_phase(Phase::Ending);
        CURRENT.set(ptr::from_ref(self));
    }

    /// The thread serves no request any more.
    pub(crate) fn rest(&self) {
        self.state.set(self.own);
        self.set_phase(Phase::Idle);
        CURRENT.set(ptr::null());
    }

    /// Calls `entry(argument)` on the request stack; true if it was cut short.
    ///
    /// # Safety
    ///
    /// As [`switch::switch`]; the request stack is not in use.
    pub(crate) unsafe fn on_request_stack(
        &self,
        entry: unsafe extern "C" fn(*mut c_void),
        argument: *mut c_void,
    ) -> bool {
        let Some(stack) = self.stack.region() else {
            return true;
        };
        // SAFETY: the caller's.
        unsafe { self.on_stack(stack, entry, argument) }
    }

    /// The same on another stack.
    ///
    /// # Safety
    ///
    /// As [`switch::switch`]; the stack is not in use.
    pub(crate) unsafe fn on_stack(
        &self,
        stack: &Region,
        entry: unsafe extern "C" fn(*mut c_void),
        argument: *mut c_void,
    ) -> bool {
        // SAFETY: the region's top is page-aligned; the rest is the caller's.
        let cut = unsafe { switch::switch(stack.top(), entry, argument, self.saved.get()) };
        if cut {
            // The landing is no place to be sent to any more.
            self.set_phase(Phase::Ending);
        }
        self.diverted.set(false);
        cut
    }

    /// The stack pointer of the landing. Async-signal-safe.
    pub(crate) fn saved(&self) -> u64 {
        // SAFETY: written by the switch of this thread before anything runs under it.
        unsafe { self.saved.get().read() }
    }

    /// The request stack.
    pub(crate) fn stack_region(&self) -> Option<&Region> {
        self.stack.region()
    }

    /// Whether an address lies in the guard below the request stack.
    pub(crate) fn is_stack_overflow(&self, address: u64) -> bool {
        let region = self.stack.region();
        region.is_some_and(|stack| stack.is_below(address))
    }

    // What went wrong.

    /// Notes an error that the library itself found.
    pub(crate) fn note_failure(&self, kind: Kind, address: u64, message: &[u8]) {
        self.note(kind, address, 0, 0, record::registers());
        if !message.is_empty() {
            self.record.say(message);
        }
    }

    /// Fills the record for the report. Async-signal-safe.
    pub(crate) fn note(
        &self,
        kind: Kind,
        address: u64,
        signal: i32,
        code: i32,
        registers: [u64; REGISTERS],
    ) {
        let in_check = self.checking.replace(false) && kind != Kind::Deadline;
        let (kind, message) = if in_check {
            let message: &[u8] = match kind {
                Kind::Invariant => &[],
                _ => b"an error in the check of the invariant",
            };
            (Kind::Invariant, message)
        } else {
            (kind, &[][..])
        };
        let stack = self.stack.region();
        self.record.note(&record::report(
            kind, address, signal, code, registers, stack,
        ));
        self.record.say(message);
    }

    /// The record of the error that cut the request short.
    pub(crate) fn record(&self) -> IoctlFail {
        self.record.report()
    }

    /// What the error said.
    pub(crate) fn message(&self) -> &[u8] {
        self.record.message()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::RunError;
    use crate::failure::Failure;
    use crate::hooked::Hooked;
    use std::hint::black_box;
    use std::sync::mpsc;

    fn failure(outcome: Result<(), RunError<Error>>) -> Failure {
        match outcome {
            Err(RunError::Failed(failure)) => *failure,
            other => panic!("{other:?}"),
        }
    }

    struct Spin<'a> {
        thread: &'a Thread,
        ended: bool,
    }

    /// Runs on the request stack, as a trial of the C library's heap that hangs does.
    unsafe extern "C" fn spin(argument: *mut c_void) {
        // SAFETY: the test passes this, which lives until this returns or is cut short.
        let spin = unsafe { &mut *argument.cast::<Spin<'_>>() };
        spin.thread.set_phase(Phase::Running);
        let start = now();
        // Ends by itself if nobody cuts it short.
        while now() - start < 10_000_000_000 {
            black_box(());
        }
        spin.ended = true;
        spin.thread.set_phase(Phase::Ending);
    }

    #[test]
    fn an_error_in_critical_code_leaves_interrupts_on() {
        let app = Hooked::app("error in critical code", |_| ());
        let domain = app.domain("one").unwrap();
        let outcome = domain.run(|_| {
            current().unwrap().critical(|| {
                // SAFETY: it is not; that is the test.
                unsafe { black_box(ptr::without_provenance_mut::<u32>(16)).write_volatile(1) };
            });
            Ok(())
        });
        assert_eq!(failure(outcome).address, 16);
        let thread = of(app).unwrap();
        assert!(!thread.is_critical() && !thread.is_pending());
        // What comes next has its time limited, before any other request begins.
        thread.attend();
        assert!(thread.set_limit(Duration::from_millis(10)));
        let mut argument = Spin {
            thread,
            ended: false,
        };
        // SAFETY: the request stack is free; spin() does not unwind.
        let cut = unsafe { thread.on_request_stack(spin, (&raw mut argument).cast()) };
        thread.clear_limit();
        thread.rest();
        assert!(cut && !argument.ended);
    }

    #[test]
    fn a_request_that_calls_the_library_in_the_middle_of_itself_fails_at_once() {
        let app = Hooked::app("in the middle", |_| ());
        let domain = app.domain("one").unwrap();
        let failure = failure(domain.run(|request| {
            // Here a jump to other code struck, between two instructions of `exclusive`.
            assert!(current().unwrap().state().latch.take(|_| false));
            request.alloc(1u8).map(drop)
        }));
        assert_eq!(failure.kind, Kind::Memory);
        assert!(failure.message.contains("in the middle"), "{failure}");
        domain.run(|request| request.alloc(1u8).map(drop)).unwrap();
    }

    #[test]
    fn a_thread_that_ends_with_the_latch_fails_the_request_of_whoever_waits_for_it() {
        let app = Hooked::app("lost latch", |_| ());
        let domain = app.domain("one").unwrap();
        let (inside, is_inside) = mpsc::channel();
        let failure = failure(domain.run(|request| {
            let ticket = request.ticket()?;
            let lost = std::thread::spawn(move || {
                let _ = ticket.join(|_| {
                    current().unwrap().exclusive(|| {
                        inside.send(()).unwrap();
                        // SAFETY: ends the thread behind everybody's back; what it owns is leaked.
                        unsafe { libc::syscall(libc::SYS_exit, 0) };
                    });
                });
            });
            // It cannot tell how it ended.
            std::mem::forget(lost);
            is_inside.recv().unwrap();
            request.alloc(1u8).map(drop)
        }));
        assert_eq!(failure.kind, Kind::ThreadDeath);
        domain.run(|request| request.alloc(1u8).map(drop)).unwrap();
    }
}
