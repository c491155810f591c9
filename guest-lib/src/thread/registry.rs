//! Registered threads: a thread is registered by its first request and unregistered when it ends.

use super::{Marks, Phase, Thread};
use crate::error::Error;
use crate::os::alarm::Alarm;
use crate::os::identity::thread_number;
use crate::os::region::Region;
use crate::os::{modules, signals};
use crate::shared::control::Control;
use crate::shared::pkru;
use crate::shared::written::Written;
use crate::state::State;
use crate::state::domain::App;
use crate::thread::arena::Arena;
use crate::thread::found::Found;
use crate::thread::record::Record;
use crate::thread::stack::Stack;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::mem::size_of;
use std::ptr::{self, NonNull};

/// Bytes of the stack that signal handlers run on.
const SIGNAL_STACK: usize = 64 * 1024;

/// What the calling thread does with the library.
pub(super) struct Here {
    /// The thread whose request runs, or null.
    pub(super) current: Cell<*const Thread>,
    /// The thread in the app that it has used last, or null.
    last: Cell<*const Thread>,
}

thread_local! {
    /// No destructor, so that the signal handler can read it at any time.
    static HERE: Here = const {
        Here { current: Cell::new(ptr::null()), last: Cell::new(ptr::null()) }
    };
    static MINE: Mine = const { Mine(RefCell::new(Vec::new())) };
}

/// The calling thread in each app that it has used.
struct Mine(RefCell<Vec<NonNull<Thread>>>);

impl Drop for Mine {
    fn drop(&mut self) {
        HERE.with(|here| here.last.set(ptr::null()));
        for place in self.0.get_mut().drain(..) {
            // SAFETY: written by register(); nobody else has it, and its own mapping outlives the
            // copy since a field of that copy owns it.
            let thread = unsafe { place.as_ptr().read() };
            // A request that calls exit() comes here; a thread that ends in another way leaves its request
            // first. The exit handlers that run next are not part of the request.
            let in_request = HERE.with(|here| ptr::eq(here.current.get(), place.as_ptr()));
            let (state, backend) = (thread.state(), thread.app.backend());
            let (control, written) = (thread.control.block(), thread.written.list());
            if in_request {
                HERE.with(|here| here.current.set(ptr::null()));
                pkru::close();
                // A stray write may be why it exits.
                thread.control.set_tag(state.tag());
            }
            backend.unregister(control);
            if in_request {
                // The request has failed by that. Its owner must not wait for the exit, which may wait for
                // the owner. If this thread is the owner, others still read its control block.
                if state.tag() != 0 {
                    state.mark_failed();
                    state.members.take_back(thread.number);
                }
                if let Some(slot) = thread.slot.take() {
                    state.members.leave(slot);
                }
            } else {
                backend.unmap(control, written);
            }
            thread.own.give_back();
            if !signals::leave_signal_stack() || in_request {
                // It still runs on one of its stacks.
                std::mem::forget(thread);
            }
        }
    }
}

/// The thread whose request runs here, if any. Async-signal-safe.
pub(crate) fn current() -> Option<&'static Thread> {
    // SAFETY: null, or a registered thread: it is unset when the request ends, and the thread's
    // memory stays until the thread ends.
    unsafe { HERE.with(|here| here.current.get()).as_ref() }
}

/// The calling thread in `app`, if no request runs here and this is the app that it has used last.
#[expect(clippy::inline_always, reason = "on the way of each request")]
#[inline(always)]
pub(crate) fn idle(app: &'static App) -> Option<&'static Thread> {
    let last = HERE.with(|here| {
        let last = here.current.get().is_null().then(|| here.last.get())?;
        // SAFETY: null, or a registered thread: it is unset before its memory goes, when the thread ends.
        unsafe { last.as_ref() }
    });
    last.filter(|thread| ptr::eq(thread.app, app))
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
                HERE.with(|here| here.last.set(thread));
                return Ok(thread);
            }
        }
        mine.reserve(1);
        let thread = Thread::register(app)?;
        mine.push(thread);
        HERE.with(|here| here.last.set(thread.as_ptr()));
        // SAFETY: as above.
        Ok(unsafe { thread.as_ref() })
    })
    .map_err(|_| ended())?
}

/// In the child of a fork: the registrations are the parent's.
pub(crate) fn forget_all() {
    if let Some(thread) = current() {
        thread.marks.forgotten.set(true);
    }
    HERE.with(|here| {
        here.current.set(ptr::null());
        here.last.set(ptr::null());
    });
    pkru::forget();
    // The parent's control blocks are not mapped here: the threads are left as they are.
    let _ = MINE.try_with(|mine| mine.0.try_borrow_mut().map(|mut mine| mine.clear()));
}

impl Thread {
    fn register(app: &'static App) -> Result<NonNull<Self>, Error> {
        modules::refresh();
        let memory = Region::new(size_of::<Self>())?;
        let signal_stack = Region::new(SIGNAL_STACK)?;
        let stack = Stack::take()?;
        let arena = Arena::new()?;
        let own = State::take()?;
        signals::enter_signal_stack(&signal_stack).inspect_err(|_| own.give_back())?;
        let registration = app
            .backend()
            .register(signals::interrupt())
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
            here: HERE.with(ptr::from_ref),
            number: thread_number(),
            // SAFETY: mapped until the thread ends, or the process if it ends in a request.
            control: unsafe { Control::new(registration.control) },
            // SAFETY: as above.
            written: unsafe { Written::new(registration.written) },
            left: Cell::new((0, 0)),
            next_tag: Cell::new(registration.tags.next),
            pause_tag: Cell::new(registration.tags.next),
            end_tag: Cell::new(registration.tags.end),
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
            arena,
            found: Found::new(),
            signal_stack,
            _memory: memory,
        };
        // SAFETY: fresh memory of the right size, page-aligned.
        unsafe { place.write(thread) };
        Ok(place)
    }
}
