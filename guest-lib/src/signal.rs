//! Crash suppression: signals of errors inside a request send the thread to its landing.
//!
//! The handler runs on a stack of its own, calls nothing but async-signal-safe functions
//! (signal-safety(7)) and touches only the thread's own state. All handled signals are blocked while
//! it runs: an error inside it ends the process, as the kernel does with a blocked SIGSEGV; it
//! cannot loop.

use crate::clib;
use crate::error::Error;
use crate::failure::Kind;
use crate::pkru;
use crate::region::Region;
use crate::switch;
use crate::thread::{self, Phase, Thread};
use std::ffi::{c_int, c_void};
use std::io;
use std::mem::zeroed;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};
use vmsrs_protocol::incident::{self, REGISTERS};

/// Signals that errors give.
const ERRORS: [c_int; 6] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
];

/// What was installed before.
struct Previous {
    suppress: bool,
    signals: [c_int; 7],
    actions: [libc::sigaction; 7],
}

static PREVIOUS: OnceLock<Previous> = OnceLock::new();
static INTERRUPT: AtomicI32 = AtomicI32::new(0);

/// The signal by which the driver interrupts threads, or 0.
pub(crate) fn interrupt() -> c_int {
    INTERRUPT.load(Ordering::Relaxed)
}

/// Whether errors are suppressed: `VMSRS_SUPPRESSION=off` lets them kill the process, for debuggers
/// and for comparison.
pub(crate) fn suppressing() -> bool {
    PREVIOUS.get().is_some_and(|previous| previous.suppress)
}

fn disposition(signal: c_int) -> io::Result<libc::sigaction> {
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

/// Installs the handlers, once in a process. Handlers that the server installs for the same signals
/// later replace them; what was installed before is called for errors outside of requests.
///
/// # Errors
///
/// [`Error::System`].
pub(crate) fn install() -> Result<(), Error> {
    let failed = || Error::system("installing signal handlers");
    if PREVIOUS.get().is_some() {
        return Ok(());
    }
    let suppress = std::env::var_os("VMSRS_SUPPRESSION").is_none_or(|value| value != "off");
    let interrupt = free_signal().map_err(failed())?;
    let mut signals = [interrupt; 7];
    signals[..ERRORS.len()].copy_from_slice(&ERRORS);
    // SAFETY: all zero is a sigaction.
    let mut actions = [unsafe { zeroed() }; 7];
    for (action, &signal) in actions.iter_mut().zip(&signals) {
        *action = disposition(signal).map_err(failed())?;
    }
    let previous = PREVIOUS.get_or_init(|| Previous {
        suppress,
        signals,
        actions,
    });
    if !suppress {
        return Ok(());
    }
    // SAFETY: all zero is a sigaction.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: fills the set.
    unsafe { libc::sigemptyset(&raw mut action.sa_mask) };
    for &signal in &previous.signals {
        // SAFETY: a signal's number and a set.
        unsafe { libc::sigaddset(&raw mut action.sa_mask, signal) };
    }
    for &signal in &previous.signals {
        // SAFETY: the handler has the signature that SA_SIGINFO asks for.
        if unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } != 0 {
            return Err(failed()(io::Error::last_os_error()));
        }
    }
    INTERRUPT.store(interrupt, Ordering::Relaxed);
    Ok(())
}

/// Gives the calling thread a stack for signal handlers.
///
/// # Errors
///
/// [`Error::System`].
pub(crate) fn enter_signal_stack(region: &Region) -> Result<(), Error> {
    let stack = libc::stack_t {
        ss_sp: region.low().cast(),
        ss_flags: 0,
        ss_size: region.size(),
    };
    // SAFETY: the region outlives the thread's registration.
    if unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) } != 0 {
        let error = io::Error::last_os_error();
        return Err(Error::system("setting the signal stack")(error));
    }
    Ok(())
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

/// Unblocks the library's signals on the calling thread: a request may have blocked them before it
/// failed, and the kernel ends the process for an error whose signal is blocked.
pub(crate) fn unblock() {
    let Some(previous) = PREVIOUS.get() else {
        return;
    };
    // SAFETY: fills the set, adds signals' numbers, and changes this thread's mask alone.
    unsafe {
        let mut ours: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut ours);
        for &signal in &previous.signals {
            libc::sigaddset(&raw mut ours, signal);
        }
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const ours, ptr::null_mut());
    }
}

/// Writes to standard error without a lock or an allocation.
pub(crate) fn say(text: &[u8]) {
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

/// Index in `uc_mcontext.gregs` of each register of a report.
const GREGS: [c_int; REGISTERS] = {
    let mut gregs = [0; REGISTERS];
    gregs[incident::REG_RAX] = libc::REG_RAX;
    gregs[incident::REG_RBX] = libc::REG_RBX;
    gregs[incident::REG_RCX] = libc::REG_RCX;
    gregs[incident::REG_RDX] = libc::REG_RDX;
    gregs[incident::REG_RSI] = libc::REG_RSI;
    gregs[incident::REG_RDI] = libc::REG_RDI;
    gregs[incident::REG_RBP] = libc::REG_RBP;
    gregs[incident::REG_RSP] = libc::REG_RSP;
    gregs[incident::REG_R8] = libc::REG_R8;
    gregs[incident::REG_R9] = libc::REG_R9;
    gregs[incident::REG_R10] = libc::REG_R10;
    gregs[incident::REG_R11] = libc::REG_R11;
    gregs[incident::REG_R12] = libc::REG_R12;
    gregs[incident::REG_R13] = libc::REG_R13;
    gregs[incident::REG_R14] = libc::REG_R14;
    gregs[incident::REG_R15] = libc::REG_R15;
    gregs[incident::REG_RIP] = libc::REG_RIP;
    gregs[incident::REG_RFLAGS] = libc::REG_EFL;
    gregs
};

/// The CPU traps behind the next instruction.
const TRAP_FLAG: i64 = 0x100;

/// Trap, alignment check and direction flags.
const FLAGS_OFF: i64 = TRAP_FLAG | 0x4_0000 | 0x400;

unsafe extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: errno is the thread's own.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel passes both with SA_SIGINFO.
    let diverted = thread::current()
        .is_some_and(|thread| unsafe { suppress(thread, signal, &*info, context.cast()) });
    if !diverted {
        // SAFETY: as above.
        unsafe { chain(signal, info, context) };
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Handles a signal of a thread with a request; false if it is none of the library's business.
///
/// # Safety
///
/// The arguments are those of a signal handler on this thread.
unsafe fn suppress(
    thread: &Thread,
    signal: c_int,
    info: &libc::siginfo_t,
    context: *mut libc::ucontext_t,
) -> bool {
    // SAFETY: the kernel's context of this thread.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    let instruction = registers[libc::REG_RIP as usize] as u64;
    let is_step = signal == libc::SIGTRAP && info.si_code == libc::TRAP_TRACE && thread.was_led();
    let signal = if is_step { interrupt() } else { signal };
    if signal == interrupt() {
        registers[libc::REG_EFL as usize] &= !TRAP_FLAG;
        if thread.is_diverted() {
            return true;
        }
        // Late ones, for a request that the thread has left meanwhile, find none that must end.
        if !thread.must_end() {
            return true;
        }
        if thread.phase() != Phase::Running || thread.is_critical() {
            thread.set_pending(true);
            return true;
        }
        let result = registers[libc::REG_RAX as usize] as u64;
        // SAFETY: the kernel's context of this thread.
        let can_trap = || unsafe { traps_come_here(&(*context).uc_sigmask) };
        if clib::is_busy(instruction, result) && thread.may_wait(instruction, result, can_trap) {
            if thread.is_led() {
                registers[libc::REG_EFL as usize] |= TRAP_FLAG;
            }
            return true;
        }
    } else {
        // SAFETY: getpid() has no conditions; si_pid is set when a process sent the signal.
        let foreign = info.si_code <= 0 && unsafe { info.si_pid() != libc::getpid() };
        if foreign {
            return false;
        }
        if !thread.can_divert() {
            if thread.phase() != Phase::Idle {
                say(b"vmsrs: an error inside the library, outside of the request's code\n");
            }
            return false;
        }
    }
    let mut noted = [0; REGISTERS];
    for (to, from) in noted.iter_mut().zip(GREGS) {
        *to = registers[from as usize] as u64;
    }
    let memory = signal == libc::SIGSEGV || signal == libc::SIGBUS;
    let address = if memory && info.si_code > 0 {
        // SAFETY: set for these signals when the kernel sends them.
        unsafe { info.si_addr() as u64 }
    } else {
        0
    };
    // What the driver knows better (foreign write, foreign draft, sealed write), it says at the report.
    let kind = match signal {
        libc::SIGSEGV | libc::SIGBUS if thread.is_stack_overflow(address) => Kind::StackOverflow,
        libc::SIGSEGV | libc::SIGBUS => Kind::Memory,
        libc::SIGFPE => Kind::Arithmetic,
        libc::SIGILL | libc::SIGTRAP => Kind::Instruction,
        libc::SIGABRT => Kind::Abort,
        _ => Kind::Deadline,
    };
    if !thread.divert() {
        say(
            b"vmsrs: an error on the way out of a request: the library's own state is damaged; \
            the process ends, committed domains are whole\n",
        );
        end_process();
    }
    thread.note(kind, address, signal, info.si_code, noted);
    registers[libc::REG_RIP as usize] = switch::landing() as i64;
    registers[libc::REG_RSP as usize] = thread.saved() as i64;
    registers[libc::REG_EFL as usize] &= !FLAGS_OFF;
    true
}

/// Whether the library gets the traps of a thread with that signal mask: the kernel ends the process for one that
/// is blocked or ignored, and a handler that the server has installed since would not know what it is.
/// Async-signal-safe.
fn traps_come_here(mask: &libc::sigset_t) -> bool {
    // SAFETY: reads the set.
    let blocked = unsafe { libc::sigismember(ptr::from_ref(mask), libc::SIGTRAP) } != 0;
    let ours = |action: libc::sigaction| action.sa_sigaction == handler as *const () as usize;
    !blocked && disposition(libc::SIGTRAP).is_ok_and(ours)
}

/// Does what would have happened without the library.
///
/// # Safety
///
/// The arguments are those of a signal handler.
unsafe fn chain(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // Handlers begin with all keys closed, and the server's may look at guarded memory.
    pkru::open_guard();
    let action = PREVIOUS.get().and_then(|previous| {
        let place = previous.signals.iter().position(|&known| known == signal)?;
        previous.actions.get(place)
    });
    let (function, flags) = action.map_or((libc::SIG_DFL, 0), |action| {
        (action.sa_sigaction, action.sa_flags)
    });
    // SAFETY: the kernel's information.
    let sent = unsafe { (*info).si_code } <= 0;
    match function {
        libc::SIG_DFL | libc::SIG_IGN if signal == interrupt() => {}
        libc::SIG_IGN if sent => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: all zero but the function is the default disposition.
            unsafe {
                let mut default: libc::sigaction = zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const default, ptr::null_mut());
            }
            if sent {
                // Blocked now: it strikes when the handler has returned.
                // SAFETY: sends this thread a signal.
                unsafe { libc::raise(signal) };
            }
            // An error of the code itself strikes again when its instruction is tried again.
        }
        function if flags & libc::SA_SIGINFO != 0 => {
            type Full = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            // SAFETY: whoever installed it with SA_SIGINFO says that it has this signature.
            unsafe { std::mem::transmute::<usize, Full>(function)(signal, info, context) }
        }
        function => {
            // SAFETY: whoever installed it without SA_SIGINFO says that it has this signature.
            unsafe {
                std::mem::transmute::<usize, unsafe extern "C" fn(c_int)>(function)(signal);
            }
        }
    }
}
