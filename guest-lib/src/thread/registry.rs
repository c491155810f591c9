//! Registered threads: a thread is registered by its first request and unregistered when it ends.

use super::{Marks, Phase, Thread};
use crate::error::Error;
use crate::failure::Failure;
use crate::os::alarm::Alarm;
use crate::os::identity::thread_number;
use crate::os::local::local;
use crate::os::region::Region;
use crate::os::{modules, signals, thread_end};
use crate::shared::control::Control;
use crate::shared::pkru;
use crate::shared::written::Written;
use crate::state::State;
use crate::state::domain::App;
use crate::thread::arena::Arena;
use crate::thread::found::Found;
use crate::thread::mutexes::Mutexes;
use crate::thread::panics::Panics;
use crate::thread::record::Record;
use crate::thread::stack::Stack;
use std::cell::{Cell, UnsafeCell};
use std::ffi::c_void;
use std::mem::size_of;
use std::ptr;
use std::sync::OnceLock;

/// Bytes of the stack that signal handlers run on.
const SIGNAL_STACK: usize = 64 * 1024;

/// Ends the request that the calling thread has left without an end, if it has.
static END_LEFT: OnceLock<fn()> = OnceLock::new();

/// A thread may leave its request by `longjmp`, and call the library no more.
fn end_left() {
    if let Some(end_left) = END_LEFT.get() {
        end_left();
    }
}

/// The end of a thread, in all apps that it has used.
unsafe extern "C" fn end_thread(_: *mut c_void) {
    end_left();
    let _held = signals::hold();
    leave_at_end();
    let local = local();
    local.last.set(ptr::null());
    let mut next = local.first.replace(ptr::null());
    while !next.is_null() {
        // SAFETY: written by register(); nobody else has it, and its own mapping outlives the copy since a field
        // of that copy owns it.
        let thread = unsafe { next.cast::<Thread>().read() };
        next = thread.next.get();
        let (control, written) = (thread.control.block(), thread.written.list());
        let backend = thread.app.backend();
        backend.unregister(control);
        backend.unmap(control, written);
        thread.own.give_back();
        if !signals::leave_signal_stack() {
            // It still runs on it.
            std::mem::forget(thread);
        }
    }
    drop(take_failure());
}

/// The process exits.
fn at_exit() {
    end_left();
    leave_at_end();
    // Programs write to their variables in exit handlers, also when a signal handler has called `exit`.
    pkru::open_guard();
}

/// A request that calls `exit`, or whose thread ends, fails by that; what runs next on the thread is not part of it.
fn leave_at_end() {
    let Some(thread) = current().filter(|thread| thread.is_own()) else {
        return;
    };
    thread.forget();
    pkru::close();
    let state = thread.state();
    // A stray write may be why it exits.
    thread.control.set_tag(state.tag());
    thread.app.backend().unregister(thread.control.block());
    // Its owner must not wait for the exit, which may wait for the owner. If this thread is the owner, others still
    // read its control block; and it runs on its request stack. So its memory stays.
    if state.tag() != 0 {
        state.mark_failed();
        state.members.take_back(thread.number);
    }
    if let Some(slot) = thread.slot.take() {
        state.members.leave(slot);
    }
    thread.own.give_back();
}

/// Has the library told when threads end and when the process exits. `end_left` ends the request that the calling thread
/// has left without an end, if it has.
///
/// # Errors
///
/// [`Error::System`].
pub(crate) fn install(end_left: fn()) -> Result<(), Error> {
    let _ = END_LEFT.set(end_left);
    thread_end::watch_exit(thread_number(), at_exit);
    thread_end::install(end_thread)
}

/// Keeps the failure of the calling thread's last failed request.
pub(crate) fn keep_failure(failure: Box<Failure>) {
    let last = local().failure.replace(Box::into_raw(failure).cast());
    // SAFETY: null, or made here before.
    drop((!last.is_null()).then(|| unsafe { Box::from_raw(last.cast::<Failure>()) }));
}

fn take_failure() -> Option<Box<Failure>> {
    let last = local().failure.replace(ptr::null_mut());
    // SAFETY: null, or made by keep_failure().
    (!last.is_null()).then(|| unsafe { Box::from_raw(last.cast()) })
}

/// Uses that failure, if there is one.
pub(crate) fn with_failure<T>(code: impl FnOnce(Option<&Failure>) -> T) -> T {
    // SAFETY: null, or made by keep_failure(); it stays while `code` runs, which runs no request.
    code(unsafe { local().failure.get().cast::<Failure>().as_ref() })
}

/// The thread whose request runs here, if any. Async-signal-safe.
pub(crate) fn current() -> Option<&'static Thread> {
    // SAFETY: null, or a registered thread: it is unset when the request ends, and the thread's
    // memory stays until the thread ends.
    unsafe { local().current.get().cast::<Thread>().as_ref() }
}

/// The calling thread in `app`, if no request runs here and this is the app that it has used last.
#[expect(clippy::inline_always, reason = "on the way of each request")]
#[inline(always)]
pub(crate) fn idle(app: &'static App) -> Option<&'static Thread> {
    let local = local();
    let last = local.current.get().is_null().then(|| local.last.get())?;
    // SAFETY: null, or a registered thread: it is unset before its memory goes, when the thread ends.
    let last = unsafe { last.cast::<Thread>().as_ref() };
    last.filter(|thread| ptr::eq(thread.app, app))
}

/// The calling thread in `app`, registered if it is new.
///
/// # Errors
///
/// [`Error::System`].
pub(crate) fn of(app: &'static App) -> Result<&'static Thread, Error> {
    let known = mine().find(|thread| ptr::eq(thread.app, app));
    let thread = match known {
        Some(thread) => thread,
        None => Thread::register(app)?,
    };
    local().last.set(ptr::from_ref(thread).cast());
    Ok(thread)
}

/// The calling thread in each app that it has used.
fn mine() -> impl Iterator<Item = &'static Thread> {
    let mut next = local().first.get();
    std::iter::from_fn(move || {
        // SAFETY: null, or a registered thread: it is off the list before its memory goes.
        let thread: &'static Thread = unsafe { next.cast::<Thread>().as_ref() }?;
        next = thread.next.get();
        Some(thread)
    })
}

/// In the child of a fork: the registrations are the parent's.
pub(crate) fn forget_all() {
    if let Some(thread) = current() {
        thread.marks.forgotten.set(true);
    }
    let local = local();
    // The parent's control blocks are not mapped here: the threads are left as they are.
    local.first.set(ptr::null());
    local.current.set(ptr::null());
    local.last.set(ptr::null());
    pkru::forget();
}

impl Thread {
    /// Signals wait meanwhile: a handler of the server may run a request too.
    fn register(app: &'static App) -> Result<&'static Self, Error> {
        // The server's mask.
        let found = Found::new();
        let _held = signals::hold();
        modules::refresh();
        thread_end::watch()?;
        thread_end::watch_exit(thread_number(), at_exit);
        let memory = Region::new(size_of::<Self>())?;
        let signal_stack = Region::new(SIGNAL_STACK)?;
        let stack = Stack::take()?;
        let arena = Arena::new()?;
        let own = State::take()?;
        signals::enter_signal_stack(&signal_stack).inspect_err(|_| own.give_back())?;
        let registration = app
            .backend()
            .register(signals::interrupt(), pkru::all_keys())
            .inspect_err(|_| {
                signals::leave_signal_stack();
                own.give_back();
            })
            .map_err(Error::system("registering the thread"))?;
        let place = memory.place().cast::<Self>();
        // A thread started in a request has inherited that request's key.
        if current().is_none() {
            pkru::close();
        }
        let thread = Self {
            app,
            local: local(),
            next: Cell::new(local().first.get()),
            number: thread_number(),
            // SAFETY: mapped until the thread ends, or the process if it ends in a request.
            control: unsafe { Control::new(registration.control) },
            // SAFETY: as above.
            written: unsafe { Written::new(registration.written) },
            panic: Cell::new(None),
            panics: Panics::default(),
            in_hook: Cell::new(false),
            left: Cell::new((0, 0)),
            counted: Cell::new(0),
            next_tag: Cell::new(registration.tags.next),
            pause_tag: Cell::new(registration.tags.next),
            end_tag: Cell::new(registration.tags.end),
            resume_tag: Cell::new(None),
            own,
            state: Cell::new(own),
            slot: Cell::new(None),
            phase: Cell::new(Phase::Outside),
            marks: Marks {
                unprotected: Cell::new(!app.protects()),
                ..Marks::default()
            },
            top: Cell::new(stack.top()),
            stack: UnsafeCell::new(stack),
            saved: UnsafeCell::new(0),
            record: Record::new(),
            deadline: Cell::new(0),
            alarm: Alarm::default(),
            domain: Cell::new(None),
            guards: Cell::new(false),
            arena,
            mutexes: Mutexes::default(),
            found,
            signal_stack,
            _memory: memory,
        };
        // SAFETY: fresh memory of the right size, page-aligned.
        unsafe { place.write(thread) };
        local().first.set(place.as_ptr().cast());
        // SAFETY: just written, and its memory stays until the thread ends.
        Ok(unsafe { place.as_ref() })
    }

    /// Whether the calling task is the thread: one that `vfork` has made runs with its parent's thread pointer.
    pub(crate) fn is_own(&self) -> bool {
        thread_number() == self.number
    }

    /// The thread, if the calling task is it.
    ///
    /// # Errors
    ///
    /// [`Error::NotInRequest`].
    pub(crate) fn own(&self) -> Result<&Self, Error> {
        self.is_own().then_some(self).ok_or(Error::NotInRequest)
    }

    /// Takes the calling thread off what finds it; its next request registers it again.
    fn forget(&self) {
        let local = self.local;
        local.current.set(ptr::null());
        local.last.set(ptr::null());
        let me = ptr::from_ref(self).cast();
        if ptr::eq(local.first.get(), me) {
            local.first.set(self.next.get());
        }
        for thread in mine().filter(|thread| ptr::eq(thread.next.get(), me)) {
            thread.next.set(self.next.get());
        }
    }
}
