//! Signals: which ones the library handles, what was installed before it, and what a handler may use.

use super::region::Region;
use crate::error::Error;
use std::ffi::{c_int, c_void};
use std::io;
use std::mem::zeroed;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

/// Signals that errors give.
const ERRORS: [c_int; 6] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
];

/// Signals that the kernel sends to a thread for a system call of its own. Handled unless the server has said what they
/// are to do; which may be to stay blocked.
const SENT: [c_int; 3] = [libc::SIGPIPE, libc::SIGXFSZ, libc::SIGSYS];

/// Those of errors, and the interrupt.
const HANDLED: usize = ERRORS.len() + 1;

/// What was installed before.
struct Previous {
    suppress: bool,
    /// The first [`HANDLED`], then those of [`SENT`].
    signals: [c_int; HANDLED + SENT.len()],
    actions: [libc::sigaction; HANDLED + SENT.len()],
    /// The signals of errors and the interrupt as a set.
    set: libc::sigset_t,
}

static PREVIOUS: OnceLock<Previous> = OnceLock::new();
static INTERRUPT: AtomicI32 = AtomicI32::new(0);

/// The library's handler.
static HANDLER: AtomicUsize = AtomicUsize::new(0);

/// The signal by which the driver interrupts threads, or 0.
pub(crate) fn interrupt() -> c_int {
    INTERRUPT.load(Ordering::Relaxed)
}

/// Whether errors are suppressed: `VMSRS_SUPPRESSION=off` lets them kill the process, for debuggers
/// and for comparison.
pub(crate) fn suppressing() -> bool {
    PREVIOUS.get().is_some_and(|previous| previous.suppress)
}

/// What is installed for a signal. Async-signal-safe.
pub(crate) fn disposition(signal: c_int) -> io::Result<libc::sigaction> {
    // SAFETY: all zero is a sigaction.
    let mut action = unsafe { zeroed() };
    // SAFETY: only reads the disposition.
    if unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(action)
}

/// A real-time signal that nobody uses, from the top.
fn free_signal() -> io::Result<c_int> {
    for signal in (libc::SIGRTMIN()..=libc::SIGRTMAX()).rev() {
        if disposition(signal)?.sa_sigaction == libc::SIG_DFL {
            return Ok(signal);
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// A handler that is installed with `SA_SIGINFO`.
pub(crate) type Handler = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Installs the handler for the signals of errors and for interrupts, once in a process. Handlers that the
/// server installs later for the same signals replace it; those installed before are called for errors
/// outside requests.
///
/// # Errors
///
/// [`Error::System`].
pub(crate) fn install(handler: Handler) -> Result<(), Error> {
    let failed = || Error::system("installing signal handlers");
    if PREVIOUS.get().is_some() {
        return Ok(());
    }
    let suppress = std::env::var_os("VMSRS_SUPPRESSION").is_none_or(|value| value != "off");
    let interrupt = free_signal().map_err(failed())?;
    let mut signals = [interrupt; HANDLED + SENT.len()];
    signals[..ERRORS.len()].copy_from_slice(&ERRORS);
    signals[HANDLED..].copy_from_slice(&SENT);
    // SAFETY: all zero is a sigaction.
    let mut actions = [unsafe { zeroed::<libc::sigaction>() }; HANDLED + SENT.len()];
    for (action, &signal) in actions.iter_mut().zip(&signals) {
        *action = disposition(signal).map_err(failed())?;
    }
    // SAFETY: all zero is a set, and both calls fill it.
    let set = unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut set);
        for &signal in &signals[..HANDLED] {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    };
    let previous = PREVIOUS.get_or_init(|| Previous {
        suppress,
        signals,
        actions,
        set,
    });
    if !suppress {
        return Ok(());
    }
    HANDLER.store(handler as usize, Ordering::Relaxed);
    for (place, &signal) in previous.signals.iter().enumerate() {
        let is_default = previous.actions[place].sa_sigaction == libc::SIG_DFL;
        if (place < HANDLED || is_default) && !take(signal) {
            return Err(failed()(io::Error::last_os_error()));
        }
    }
    INTERRUPT.store(interrupt, Ordering::Relaxed);
    Ok(())
}

/// Installs the library's handler for a signal, which is one of those that it handles.
pub(super) fn take(signal: c_int) -> bool {
    // SAFETY: all zero is a sigaction.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = HANDLER.load(Ordering::Relaxed);
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // A handler of the server that interrupts this one could not fail: the signals of errors are blocked.
    // SAFETY: fills the set.
    unsafe { libc::sigfillset(&raw mut action.sa_mask) };
    // SAFETY: the handler has the signature that SA_SIGINFO asks for.
    unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) == 0 }
}

/// The library's handler, as [`disposition`] has it; 0 if there is none.
pub(crate) fn handler() -> usize {
    HANDLER.load(Ordering::Relaxed)
}

/// The signals of errors and the interrupt; none if the library does not suppress errors.
pub(super) fn all_handled() -> &'static [c_int] {
    match PREVIOUS.get() {
        Some(previous) if previous.suppress => &previous.signals[..HANDLED],
        _ => &[],
    }
}

/// Whether that is the library's handler.
pub(super) fn is_ours(action: &libc::sigaction) -> bool {
    action.sa_sigaction == HANDLER.load(Ordering::Relaxed)
}

/// What a failure says whose signal the kernel has sent for a system call. The call's instruction, tried again, does not give
/// another one.
pub(crate) fn message(signal: c_int) -> Option<&'static [u8]> {
    match signal {
        libc::SIGPIPE => Some(b"SIGPIPE: a write that nobody can read any more"),
        libc::SIGXFSZ => Some(b"SIGXFSZ: a write past the limit of files' sizes"),
        libc::SIGSYS => Some(b"SIGSYS: a system call that is not allowed"),
        _ => None,
    }
}

/// What was installed for a signal before the library's handler.
pub(crate) fn previous(signal: c_int) -> Option<&'static libc::sigaction> {
    let previous = PREVIOUS.get()?;
    let place = previous.signals.iter().position(|&known| known == signal)?;
    previous.actions.get(place)
}

/// A stack for signal handlers.
fn signal_stack(region: &Region) -> libc::stack_t {
    libc::stack_t {
        ss_sp: region.low().cast(),
        ss_flags: 0,
        ss_size: region.size(),
    }
}

/// Gives the calling thread a stack for signal handlers. Async-signal-safe.
///
/// # Errors
///
/// [`Error::System`].
pub(crate) fn enter_signal_stack(region: &Region) -> Result<(), Error> {
    let stack = signal_stack(region);
    // SAFETY: the region outlives the thread's registration.
    if unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) } != 0 {
        let error = io::Error::last_os_error();
        return Err(Error::system("setting the signal stack")(error));
    }
    Ok(())
}

/// Whether the thread that a signal handler has interrupted, whose `context` that is, has this stack for its handlers; it has it
/// again when the handler returns. Async-signal-safe.
pub(crate) fn had_signal_stack(region: &Region, context: &libc::ucontext_t) -> bool {
    let (had, ours) = (&context.uc_stack, signal_stack(region));
    had.ss_sp == ours.ss_sp && had.ss_size == ours.ss_size && had.ss_flags == 0
}

/// Takes the stack away again; the thread ends.
pub(crate) fn leave_signal_stack() -> bool {
    let stack = libc::stack_t {
        ss_sp: ptr::null_mut(),
        ss_flags: libc::SS_DISABLE,
        ss_size: 0,
    };
    // SAFETY: disables the stack, unless the thread runs on it.
    unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) == 0 }
}

/// A set of signals as the kernel has it: signal 1 in the lowest bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Signals(u64);

impl Signals {
    pub(super) const fn of(signal: c_int) -> Self {
        Self(1 << (signal - 1))
    }

    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    pub(crate) const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    pub(crate) const fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    pub(crate) const fn has(self, signal: c_int) -> bool {
        self.0 & Self::of(signal).0 != 0
    }

    pub(crate) const fn are_none(self) -> bool {
        self.0 == 0
    }

    /// A C library's set. Async-signal-safe.
    pub(crate) fn read(set: &libc::sigset_t) -> Self {
        // SAFETY: the first word is the kernel's set.
        Self(unsafe { ptr::from_ref(set).cast::<u64>().read() })
    }

    /// Writes them to the context of a signal handler: the mask from its end on. Async-signal-safe.
    ///
    /// # Safety
    ///
    /// The kernel's context of this thread. Its set is one word; the rest of a `sigset_t` means something else there.
    pub(crate) unsafe fn block_after(self, context: *mut libc::ucontext_t) {
        // SAFETY: by contract.
        unsafe { (&raw mut (*context).uc_sigmask).cast::<u64>().write(self.0) };
    }

    /// Makes them the signals that the calling thread blocks. Async-signal-safe.
    pub(crate) fn block(self) {
        // SAFETY: changes this thread's mask alone. The C library's function would leave its own signals out.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const self.0,
                ptr::null_mut::<u64>(),
                size_of::<u64>(),
            );
        }
    }
}

/// The signals that the calling thread blocks. Async-signal-safe.
pub(crate) fn blocked() -> Signals {
    let mut mask = 0u64;
    // SAFETY: only reads this thread's mask.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_BLOCK,
            ptr::null::<u64>(),
            &raw mut mask,
            size_of::<u64>(),
        );
    }
    Signals(mask)
}

/// The signals of errors and the interrupt. The kernel ends the process for an error whose signal is blocked, so
/// threads with requests block none of them.
pub(crate) fn handled() -> Signals {
    PREVIOUS
        .get()
        .map_or(Signals(0), |previous| Signals::read(&previous.set))
}

/// Takes back a SIGPIPE that waits for the calling thread. The kernel sends it to the thread that has written, which is
/// why libraries block it around a write; when it is unblocked it must not end the process. `blocked`: what only the
/// failed code has blocked. Async-signal-safe.
pub(crate) fn forget_broken_pipe(blocked: Signals) {
    if !blocked.has(libc::SIGPIPE) {
        return;
    }
    let (set, now) = (Signals::of(libc::SIGPIPE), [0i64; 2]);
    // SAFETY: does not wait; the signal is blocked.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigtimedwait,
            &raw const set.0,
            ptr::null_mut::<c_void>(),
            &raw const now,
            size_of::<u64>(),
        );
    }
}

/// The calling thread's signals are held while this lives, but for those of errors.
#[derive(Debug)]
pub(crate) struct Held {
    /// The thread's mask before.
    pub(super) before: u64,
}

/// See [`Held`].
pub(crate) fn hold() -> Held {
    let errors = ERRORS
        .iter()
        .fold(0_u64, |set, signal| set | 1 << (signal - 1));
    Held {
        before: set_mask(libc::SIG_BLOCK, !errors),
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        set_mask(libc::SIG_SETMASK, self.before);
    }
}

/// Changes the calling thread's mask, as the kernel has it; returns the one before. The C library's call leaves out its
/// own signals, which end threads.
pub(super) fn set_mask(how: c_int, set: u64) -> u64 {
    let mut before = 0_u64;
    // SAFETY: reads and writes a set of the size that it says.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            how,
            &raw const set,
            &raw mut before,
            size_of::<u64>(),
        )
    };
    before
}

/// Writes to standard error without a lock or an allocation.
pub(crate) fn write_stderr(text: &[u8]) {
    // SAFETY: the bytes are alive; a message that cannot be written is lost.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
}

/// Ends the process by SIGABRT, whatever handlers there are: they could wait for what is broken.
pub(crate) fn end_process() -> ! {
    // SAFETY: all zero is the default disposition; abort() has no conditions.
    unsafe {
        let default: libc::sigaction = zeroed();
        libc::sigaction(libc::SIGABRT, &raw const default, ptr::null_mut());
        libc::abort()
    }
}
