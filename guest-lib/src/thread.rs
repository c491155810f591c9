//! A thread of the server, as the library knows it: control block, request stack, signal stack, and
//! what belongs to the request that it runs.
//!
//! A thread is registered by its first request and unregistered when it ends. Its state lies in a
//! mapping of its own between guards, away from the C library's heap.

use crate::alarm::Alarm;
use crate::app::App;
use crate::arena::Arena;
use crate::backend::Tags;
use crate::domain::Domain;
use crate::error::Error;
use crate::failure::Kind;
use crate::held::{self, HeldList};
use crate::pkru::{self, Key};
use crate::region::Region;
use crate::request::Request;
use crate::stack::Stack;
use crate::{clib, evidence, lock, signal, switch};
use std::cell::{Cell, RefCell, UnsafeCell};
use std::ffi::c_void;
use std::mem::size_of;
use std::ptr::{self, NonNull};
use std::sync::atomic::{Ordering, compiler_fence};
use std::time::Duration;
use vmsrs_protocol::incident::{BACKTRACE, REGISTERS};
use vmsrs_protocol::ioctl::IoctlFail;
use vmsrs_protocol::shared::{HELD_MAX, ThreadControl};

/// Bytes of the stack that signal handlers run on.
const SIGNAL_STACK: usize = 64 * 1024;

/// Blocks that a request can free before the oldest goes back to the heap.
pub(crate) const QUARANTINE: usize = 256;

/// Newest blocks of a request that the audit looks at in a big domain.
pub(crate) const RECENT: usize = 64;

/// Most defers of one request.
const DEFERS_MAX: usize = 256;

/// Bytes of a failure's message.
pub(crate) const MESSAGE: usize = 127;

/// What a thread does; tells the signal handler what an error means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No request.
    Idle,
    /// A request begins; the server's stack.
    Entering,
    /// The request's function, or the audit behind it; the request stack.
    Running,
    /// The request ends; the server's stack.
    Ending,
    /// A defer of a failed request; the request stack.
    Deferring,
}

/// A freed block, or a new one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Noted {
    pub(crate) domain: &'static Domain,
    pub(crate) address: u64,
}

/// The last `N` blocks noted.
#[derive(Debug)]
pub(crate) struct Ring<const N: usize> {
    entries: UnsafeCell<[Option<Noted>; N]>,
    next: Cell<usize>,
}

impl<const N: usize> Ring<N> {
    fn new() -> Self {
        Self {
            entries: UnsafeCell::new([None; N]),
            next: Cell::new(0),
        }
    }

    /// Notes a block; gives the one that had its place.
    pub(crate) fn note(&self, noted: Noted) -> Option<Noted> {
        let place = self.next.get() % N;
        self.next.set(self.next.get() + 1);
        // SAFETY: the ring belongs to one thread, and no reference into it outlives a method.
        unsafe { (*self.entries.get())[place].replace(noted) }
    }

    /// The entry at `place`, oldest places first.
    pub(crate) fn get(&self, place: usize) -> Option<Noted> {
        // SAFETY: as in note().
        unsafe { (&*self.entries.get()).get(place).copied().flatten() }
    }

    /// Takes the entry at `place`.
    pub(crate) fn take(&self, place: usize) -> Option<Noted> {
        // SAFETY: as in note().
        unsafe { (&mut *self.entries.get()).get_mut(place)?.take() }
    }

    /// Places in use.
    pub(crate) fn used(&self) -> usize {
        self.next.get().min(N)
    }

    pub(crate) fn clear(&self) {
        for place in 0..self.used() {
            self.take(place);
        }
        self.next.set(0);
    }
}

/// Something to undo. Dropping it drops what it owns without running it.
pub(crate) struct Deferred {
    pub(crate) call: unsafe extern "C-unwind" fn(*mut c_void),
    pub(crate) argument: *mut c_void,
    pub(crate) discard: Option<unsafe fn(*mut c_void)>,
}

impl Drop for Deferred {
    fn drop(&mut self) {
        if let Some(discard) = self.discard {
            // SAFETY: whoever made this says that discard takes the argument.
            unsafe { discard(self.argument) };
        }
    }
}

/// One thread in one app.
pub(crate) struct Thread {
    app: &'static App,
    control: NonNull<ThreadControl>,
    /// Protection key of its requests' drafts.
    key: Key,
    tags: Cell<Tags>,
    phase: Cell<Phase>,
    /// Above 0: interrupts wait until it is 0 again.
    critical: Cell<u32>,
    /// An interrupt waits.
    pending: Cell<bool>,
    /// The audit looks at whole domains, not only at what the request has written.
    whole_audit: Cell<bool>,
    /// The tag of the running request, as the library gave it: the control block is where a stray write
    /// may strike as well.
    own_tag: Cell<u64>,
    /// An error is on its way to the landing, and has not arrived.
    diverted: Cell<bool>,
    /// An invariant of the server is being checked.
    checking: Cell<bool>,
    /// This is a forked child's copy: the driver does not know it.
    forgotten: Cell<bool>,
    stack: Stack,
    saved: UnsafeCell<u64>,
    record: UnsafeCell<IoctlFail>,
    message: UnsafeCell<[u8; MESSAGE]>,
    message_length: Cell<usize>,
    /// `CLOCK_MONOTONIC` nanoseconds at which the request is over its deadline, or 0.
    deadline: Cell<u64>,
    /// Looks again, and for the library's own time limits.
    alarm: Alarm,
    /// Times that an interrupt has waited for the thread to leave the C library.
    waited: Cell<u32>,
    lock_timeout_ms: Cell<u32>,
    domains: UnsafeCell<[Option<&'static Domain>; HELD_MAX]>,
    /// Bit n: the domain at place n has a heap. Kept outside of the domain, where a request's stray
    /// write cannot make a damaged heap look like a new domain.
    heaps: Cell<u32>,
    request: Request,
    pub(crate) quarantine: Ring<QUARANTINE>,
    pub(crate) recent: Ring<RECENT>,
    defers: RefCell<Vec<Deferred>>,
    arena: Arena,
    _signal_stack: Region,
    _memory: Region,
}

const _: () = assert!(HELD_MAX <= u32::BITS as usize, "a bit for each place");

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
        for thread in self.0.get_mut().drain(..) {
            // SAFETY: written by register(); nobody else has it, and its own mapping outlives the
            // copy since a field of that copy owns it.
            let thread = unsafe { thread.as_ptr().read() };
            thread.app.backend().unregister(thread.control);
            signal::leave_signal_stack();
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
/// [`Error::System`].
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
    pkru::close();
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
        signal::enter_signal_stack(&signal_stack)?;
        let registration = app
            .backend()
            .register(signal::interrupt())
            .inspect_err(|_| signal::leave_signal_stack())
            .map_err(Error::system("registering the thread"))?;
        let key = Key::take();
        let place = memory.place().cast::<Self>();
        let thread = Self {
            app,
            control: registration.control,
            key,
            tags: Cell::new(registration.tags),
            phase: Cell::new(Phase::Idle),
            critical: Cell::new(0),
            pending: Cell::new(false),
            whole_audit: Cell::new(false),
            own_tag: Cell::new(0),
            diverted: Cell::new(false),
            checking: Cell::new(false),
            forgotten: Cell::new(false),
            stack,
            saved: UnsafeCell::new(0),
            record: UnsafeCell::default(),
            message: UnsafeCell::new([0; MESSAGE]),
            message_length: Cell::new(0),
            deadline: Cell::new(0),
            alarm: Alarm::default(),
            waited: Cell::new(0),
            lock_timeout_ms: Cell::new(crate::lock::TIMEOUT_MS),
            domains: UnsafeCell::new([None; HELD_MAX]),
            heaps: Cell::new(0),
            request: Request::new(place),
            quarantine: Ring::new(),
            recent: Ring::new(),
            defers: RefCell::new(Vec::with_capacity(DEFERS_MAX)),
            arena,
            _signal_stack: signal_stack,
            _memory: memory,
        };
        // SAFETY: as in tag().
        thread.write(
            |control| unsafe { &raw mut (*control).key },
            thread.key.number(),
        );
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
        self.whole_audit.get()
    }

    pub(crate) fn set_whole_audit(&self, whole: bool) {
        self.whole_audit.set(whole);
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

    /// Fails the request if an interrupt waits.
    pub(crate) fn act_on_pending(&self) {
        if !self.is_critical() && self.is_pending() && self.phase() == Phase::Running {
            self.set_pending(false);
            fail_request(Kind::Deadline, 0, &[]);
        }
    }

    /// Whether the request is past its deadline. Async-signal-safe.
    pub(crate) fn is_overdue(&self) -> bool {
        self.deadline.get() != 0 && now() >= self.deadline.get()
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

    // The control block.

    fn field<T>(&self, field: impl FnOnce(*mut ThreadControl) -> *mut T) -> *mut T {
        field(self.control.as_ptr())
    }

    fn write<T>(&self, field: impl FnOnce(*mut ThreadControl) -> *mut T, value: T) {
        compiler_fence(Ordering::SeqCst);
        // SAFETY: a field of the thread's own control block; volatile since the driver reads it
        // whenever this thread faults.
        unsafe { self.field(field).write_volatile(value) };
        compiler_fence(Ordering::SeqCst);
    }

    fn read<T: Copy>(&self, field: impl FnOnce(*mut ThreadControl) -> *mut T) -> T {
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as in write().
        unsafe { self.field(field).read_volatile() }
    }

    #[cfg(test)]
    pub(crate) fn control(&self) -> NonNull<ThreadControl> {
        self.control
    }

    pub(crate) fn tag(&self) -> u64 {
        // SAFETY: the pointer is valid; only the field's address is taken.
        self.read(|control| unsafe { &raw mut (*control).tag })
    }

    /// Whether the request may have written to domains.
    pub(crate) fn has_drafts(&self) -> bool {
        // SAFETY: as in tag().
        let drafts = self.read(|control| unsafe { &raw mut (*control).drafts });
        drafts != 0
    }

    pub(crate) fn clear_drafts(&self) {
        // SAFETY: as in tag().
        self.write(|control| unsafe { &raw mut (*control).drafts }, 0);
    }

    fn held_entry(&self, place: usize) -> *mut u32 {
        // SAFETY: as in tag().
        let held = self.field(|control| unsafe { &raw mut (*control).held });
        held.cast::<u32>().wrapping_add(place.min(HELD_MAX - 1))
    }

    /// Domains held, in the order of their locking.
    pub(crate) fn held(&self) -> &[u32] {
        // SAFETY: inside of the control block; only this thread writes it, by methods that are not
        // called while the result is in use.
        unsafe { std::slice::from_raw_parts(self.held_entry(0), held::len(self)) }
    }

    pub(crate) fn holds(&self, domain: u32) -> bool {
        self.held().contains(&domain)
    }

    /// Notes a domain as held; its lock is taken next.
    pub(crate) fn push_held(&self, domain: u32) {
        held::push(self, domain);
    }

    /// Forgets a domain as held; its lock is free.
    pub(crate) fn remove_held(&self, domain: u32) {
        held::remove(self, domain);
    }

    /// The handles of the held domains: parallel to the control block's list, but the library's.
    pub(crate) fn domain_at(&self, place: usize) -> Option<&'static Domain> {
        // SAFETY: this thread's own, and no reference into it outlives a method.
        unsafe { (&*self.domains.get()).get(place).copied().flatten() }
    }

    pub(crate) fn note_domain(&self, domain: &'static Domain, has_heap: bool) {
        // SAFETY: as in domain_at().
        let domains = unsafe { &mut *self.domains.get() };
        if let Some(free) = domains.iter_mut().find(|place| place.is_none()) {
            *free = Some(domain);
        }
        if has_heap {
            self.note_heap(domain);
        }
    }

    pub(crate) fn forget_domain(&self, domain: &Domain) {
        self.heaps.set(self.heaps.get() & !self.bit(domain));
        // SAFETY: as in domain_at().
        let domains = unsafe { &mut *self.domains.get() };
        for place in domains {
            if place.is_some_and(|held| ptr::eq(held, domain)) {
                *place = None;
            }
        }
    }

    /// Notes that a domain that the request holds has a heap.
    pub(crate) fn note_heap(&self, domain: &Domain) {
        self.heaps.set(self.heaps.get() | self.bit(domain));
    }

    /// Whether a domain that the request holds had a heap when the request took it, or got one since.
    pub(crate) fn has_heap(&self, domain: &Domain) -> bool {
        self.heaps.get() & self.bit(domain) != 0
    }

    /// The bit of `heaps` for a domain that the request holds, or 0.
    fn bit(&self, domain: &Domain) -> u32 {
        (0..HELD_MAX)
            .find(|&place| {
                self.domain_at(place)
                    .is_some_and(|held| ptr::eq(held, domain))
            })
            .map_or(0, |place| 1 << place)
    }

    /// Whether the control block and the locks say what the library has put there. Only asked when the
    /// request is neither taking nor releasing a lock.
    pub(crate) fn is_whole(&self) -> bool {
        let tag = self.own_tag.get();
        let held = (0..HELD_MAX).filter_map(|place| self.domain_at(place));
        let mut count = 0;
        let known = held.fold(true, |whole, domain| {
            count += 1;
            whole && self.holds(domain.number()) && lock::holder(domain) == tag
        });
        known && count == self.held().len() && self.tag() == tag
    }

    /// Puts right what a stray write has done to the control block, before the driver acts on it.
    pub(crate) fn repair_control(&self) {
        let tag = self.own_tag.get();
        // SAFETY: as in tag().
        self.write(|control| unsafe { &raw mut (*control).tag }, tag);
        let held = || (0..HELD_MAX).filter_map(|place| self.domain_at(place));
        if !held().all(|domain| self.holds(domain.number())) {
            // What is entered and not noted yet is not locked yet, or the driver knows it as written.
            while let Some(&domain) = self.held().last() {
                self.remove_held(domain);
            }
            for domain in held() {
                self.push_held(domain.number());
            }
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
    pub(crate) fn begin(&self, deadline_ms: u32, lock_timeout_ms: u32) -> Result<(), Error> {
        let mut tags = self.tags.get();
        if tags.next >= tags.end {
            let backend = self.app.backend();
            tags = backend.tags().map_err(Error::system("fetching tags"))?;
        }
        let tag = tags.next;
        tags.next += 1;
        self.tags.set(tags);
        self.pending.set(false);
        self.critical.set(0);
        self.waited.set(0);
        self.checking.set(false);
        self.lock_timeout_ms.set(lock_timeout_ms);
        self.deadline.set(match deadline_ms {
            0 => 0,
            limit => now() + u64::from(limit) * 1_000_000,
        });
        self.set_phase(Phase::Entering);
        CURRENT.set(ptr::from_ref(self));
        self.clear_drafts();
        // SAFETY: as in tag().
        self.write(
            |control| unsafe { &raw mut (*control).deadline_ns },
            self.deadline.get(),
        );
        // SAFETY: as in tag().
        self.write(|control| unsafe { &raw mut (*control).tag }, tag);
        self.own_tag.set(tag);
        self.key.open();
        Ok(())
    }

    /// Ends the request; nothing is held any more. All ways out of a request lead here, but for the
    /// child of a fork ([`forget_all`]).
    pub(crate) fn end(&self) {
        pkru::close();
        // SAFETY: as in tag().
        self.write(|control| unsafe { &raw mut (*control).tag }, 0);
        // SAFETY: as in tag().
        self.write(|control| unsafe { &raw mut (*control).deadline_ns }, 0);
        self.set_count(0);
        self.clear_drafts();
        self.deadline.set(0);
        self.alarm.stop();
        // SAFETY: as in domain_at().
        unsafe { *self.domains.get() = [None; HELD_MAX] };
        self.heaps.set(0);
        self.quarantine.clear();
        self.recent.clear();
        self.arena.reset();
    }

    /// The thread serves no request any more.
    pub(crate) fn rest(&self) {
        self.set_phase(Phase::Idle);
        CURRENT.set(ptr::null());
    }

    pub(crate) fn lock_timeout_ms(&self) -> u32 {
        self.lock_timeout_ms.get()
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

    // What went wrong.

    /// Notes an error that the library itself found.
    pub(crate) fn note_failure(&self, kind: Kind, address: u64, message: &[u8]) {
        let mut registers = [0; REGISTERS];
        let (rsp, rbp, rip): (u64, u64, u64);
        // SAFETY: reads registers.
        unsafe {
            std::arch::asm!(
                "mov {}, rsp", "mov {}, rbp", "lea {}, [rip]",
                out(reg) rsp, out(reg) rbp, out(reg) rip,
                options(nomem, nostack, preserves_flags)
            );
        }
        registers[6] = rbp;
        registers[7] = rsp;
        registers[16] = rip;
        self.note(kind, address, 0, 0, registers);
        if !message.is_empty() {
            self.set_message(message);
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
        let record = IoctlFail {
            detected_ns: now(),
            address,
            kind: kind.number(),
            signal,
            code,
            registers,
            backtrace: self.backtrace(registers[6]),
            flags: evidence::address_flag(address, signal, code),
            ..IoctlFail::default()
        };
        // SAFETY: this thread's own, read after the landing only.
        unsafe { self.record.get().write(record) };
        self.set_message(message);
    }

    fn set_message(&self, message: &[u8]) {
        let length = message.len().min(MESSAGE);
        // SAFETY: this thread's own, and no reference into it is alive.
        unsafe { (&mut *self.message.get())[..length].copy_from_slice(&message[..length]) };
        self.message_length.set(length);
    }

    /// Follows the frame pointers, inside of the request stack and upwards only, so that no damage
    /// can lead it astray. Frames of code without frame pointers are missing.
    fn backtrace(&self, mut frame: u64) -> [u64; BACKTRACE] {
        let mut addresses = [0; BACKTRACE];
        let Some(stack) = self.stack.region() else {
            return addresses;
        };
        for entry in &mut addresses {
            let whole = stack.holds_word(frame) && stack.holds_word(frame + 8);
            if !whole || !frame.is_multiple_of(8) {
                break;
            }
            // SAFETY: two aligned words inside of the request stack.
            let (next, address) = unsafe { (*(frame as *const u64), *((frame + 8) as *const u64)) };
            *entry = address;
            if next <= frame {
                break;
            }
            frame = next;
        }
        addresses
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

    /// The record of the error that cut the request short.
    pub(crate) fn record(&self) -> IoctlFail {
        // SAFETY: the thread has landed; nobody writes the record.
        unsafe { self.record.get().read() }
    }

    /// What the error said.
    pub(crate) fn message(&self) -> &[u8] {
        // SAFETY: as in record().
        let message = unsafe { &*self.message.get() };
        &message[..self.message_length.get().min(MESSAGE)]
    }

    // Defers.

    /// # Errors
    ///
    /// [`Error::Limit`].
    pub(crate) fn defer(&self, deferred: Deferred) -> Result<(), Error> {
        self.critical(|| {
            let mut defers = self.defers.borrow_mut();
            if defers.len() >= DEFERS_MAX {
                return Err(Error::Limit("256 defers"));
            }
            defers.push(deferred);
            Ok(())
        })
    }

    pub(crate) fn newest_defer(&self) -> Option<Deferred> {
        self.defers.borrow_mut().pop()
    }

    pub(crate) fn forget_defers(&self) {
        while let Some(deferred) = self.newest_defer() {
            drop(deferred);
        }
    }
}

impl HeldList for Thread {
    fn count(&self) -> u32 {
        // SAFETY: as in tag().
        self.read(|control| unsafe { &raw mut (*control).held_count })
    }

    fn set_count(&self, count: u32) {
        // SAFETY: as in tag().
        self.write(|control| unsafe { &raw mut (*control).held_count }, count);
    }

    fn entry(&self, place: usize) -> u32 {
        self.read(|_| self.held_entry(place))
    }

    fn set_entry(&self, place: usize, domain: u32) {
        self.write(|_| self.held_entry(place), domain);
    }
}
