//! Crash suppression: signals of errors inside a request send the thread to its landing.
//!
//! The handler runs on a stack of its own, calls only async-signal-safe functions
//! (signal-safety(7)) and touches only the thread's own state. All handled signals are blocked while
//! it runs: an error inside it ends the process, as the kernel does with a blocked SIGSEGV; it
//! cannot loop.

use super::interrupts::Turn;
use super::{Thread, current};
use crate::error::Error;
use crate::failure::Kind;
use crate::os::signals::{self, Handler, Signals, disposition, interrupt, write_stderr};
use crate::os::sleep::Sleep;
use crate::os::switch::FLAGS;
use crate::os::{dispositions, errno, frames, loader, switch};
use crate::shared::pkru;
use std::arch::global_asm;
use std::ffi::{c_int, c_void};
use std::mem::zeroed;
use std::ptr;
use vmsrs_protocol::incident::{self, REGISTERS};

/// Installs the handler, once in a process.
///
/// # Errors
///
/// [`Error::System`].
pub(crate) fn install() -> Result<(), Error> {
    // SAFETY: it is what the kernel calls, and goes on with a function of that type.
    let entry = unsafe { std::mem::transmute::<unsafe extern "C" fn(), Handler>(vmsrs_handler) };
    signals::install(entry)?;
    frames::install(interrupt());
    loader::install();
    Ok(())
}

// The kernel clears the other flags that the interrupted code may have left. The fourth argument is the stack pointer.
global_asm!(
    ".text",
    ".p2align 4",
    ".globl vmsrs_handler",
    ".hidden vmsrs_handler",
    ".type vmsrs_handler, @function",
    "vmsrs_handler:",
    "mov rcx, rsp",
    "pushfq",
    "and dword ptr [rsp], {keep}",
    "popfq",
    "jmp {handler}",
    ".size vmsrs_handler, . - vmsrs_handler",
    keep = const !FLAGS,
    handler = sym handler,
);

unsafe extern "C" {
    fn vmsrs_handler();
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

/// The CPU traps after the next instruction.
const TRAP_FLAG: i64 = 0x100;

/// What the handler of a signal has done about it.
enum Done {
    /// It is not the library's.
    Nothing,
    /// The code goes on where the context says.
    Goes,
    /// So it does, and that is at the thread's landing.
    Lands,
}

unsafe extern "C" fn handler(
    signal: c_int,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
    stack_pointer: u64,
) {
    let context = context.cast::<libc::ucontext_t>();
    let landing = errno::kept(|| {
        let thread = current();
        // One that shares the memory of its parent, whose request this is.
        let is_child = thread.is_some_and(|thread| !thread.is_own());
        let done = match thread {
            // SAFETY: the kernel passes both with SA_SIGINFO.
            Some(thread) if !is_child => unsafe { suppress(thread, signal, &*info, context) },
            _ => Done::Nothing,
        };
        match done {
            // SAFETY: as above.
            Done::Nothing => unsafe { chain(signal, info, context, is_child) },
            Done::Goes => {}
            // A handler of the server that calls this one is to have it return.
            Done::Lands if !is_frame(stack_pointer, context) => {}
            Done::Lands => return thread,
        }
        None
    });
    if let Some(thread) = landing {
        // SAFETY: the kernel's context of this thread, which runs under its switch.
        unsafe {
            thread.restore_signals_now();
            pkru::resume(context);
            switch::leap(thread.saved());
        }
    }
}

/// Whether the kernel itself has called a handler, with that context and with the stack pointer that it begins with.
fn is_frame(stack_pointer: u64, context: *const libc::ucontext_t) -> bool {
    stack_pointer + frames::CONTEXT == context as u64
}

/// Handles a signal of a thread with a request.
///
/// # Safety
///
/// The arguments are those of a signal handler on this thread.
unsafe fn suppress(
    thread: &Thread,
    signal: c_int,
    info: &libc::siginfo_t,
    context: *mut libc::ucontext_t,
) -> Done {
    // SAFETY: the kernel's context of this thread.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    let instruction = registers[libc::REG_RIP as usize] as u64;
    let pointer = registers[libc::REG_RSP as usize] as u64;
    // SAFETY: the kernel's context of this thread.
    let blocked = Signals::read(unsafe { &(*context).uc_sigmask });
    // TRAP_BRKPT, which no INT3 gives, is a step whose DR6 a hypervisor has lost.
    let is_step = signal == libc::SIGTRAP
        && matches!(info.si_code, libc::TRAP_TRACE | libc::TRAP_BRKPT)
        && thread.has_single_stepped();
    let signal = if is_step { interrupt() } else { signal };
    if thread.has_left(pointer) {
        // There is nothing to come back to. The thread's next call of the library ends the request.
        return if signal == interrupt() {
            Done::Goes
        } else {
            Done::Nothing
        };
    }
    if signal == interrupt() {
        // SAFETY: the kernel's context of this thread.
        let can_trap = || unsafe { traps_come_here(&(*context).uc_sigmask) };
        if goes_on(thread, registers, can_trap) {
            return Done::Goes;
        }
    } else {
        // SAFETY: getpid() has no conditions; si_pid is set when a process sent the signal.
        let foreign = info.si_code <= 0 && unsafe { info.si_pid() != libc::getpid() };
        if foreign {
            return Done::Nothing;
        }
        if let Some(clean) = switch::returning(instruction).filter(|_| signal == libc::SIGFPE) {
            registers[libc::REG_RIP as usize] = clean as i64;
            return Done::Goes;
        }
        if !thread.can_divert()
            && let Some(handler) = thread.find_handler(pointer, blocked)
        {
            // The library goes on as if it had returned.
            let (end, stack) = handler.end();
            registers[libc::REG_RIP as usize] = end as i64;
            registers[libc::REG_RSP as usize] = stack as i64;
            registers[libc::REG_EFL as usize] &= !i64::from(FLAGS);
            write_stderr(b"vmsrs: an error in a signal handler, which has interrupted the library and is ended\n");
            return Done::Goes;
        }
        if !thread.can_divert() {
            write_stderr(b"vmsrs: an error inside the library, outside of the request's code\n");
            return Done::Nothing;
        }
    }
    let memory = signal == libc::SIGSEGV || signal == libc::SIGBUS;
    let address = if memory && info.si_code > 0 {
        // SAFETY: set for these signals when the kernel sends them.
        unsafe { info.si_addr() as u64 }
    } else {
        0
    };
    // The driver replaces the kind at the report where it knows better (foreign write, foreign draft,
    // sealed write).
    let kind = match signal {
        libc::SIGSEGV | libc::SIGBUS if thread.is_stack_overflow(address) => Kind::StackOverflow,
        libc::SIGSEGV | libc::SIGBUS => Kind::Memory,
        libc::SIGFPE => Kind::Arithmetic,
        libc::SIGILL | libc::SIGTRAP => Kind::Instruction,
        _ if signal == interrupt() => Kind::Deadline,
        _ => Kind::Abort,
    };
    thread.note(kind, address, signal, info.si_code, |noted| {
        for (to, from) in noted.iter_mut().zip(&GREGS) {
            *to = registers[*from as usize] as u64;
        }
    });
    if kind == Kind::Abort
        && let Some(message) = signals::message(signal)
    {
        thread.add_message(message);
    }
    if thread.find_handler(pointer, blocked).is_some() {
        thread.marks.in_handler.set(true);
        thread.add_message(b"in a signal handler");
    }
    registers[libc::REG_RIP as usize] = switch::landing() as i64;
    registers[libc::REG_RSP as usize] = thread.saved() as i64;
    registers[libc::REG_EFL as usize] &= !i64::from(FLAGS);
    // SAFETY: the kernel's context of this thread.
    unsafe { thread.restore_signals_after(context) };
    thread.land_from_signal();
    Done::Lands
}

/// Whether the thread goes on, which an interrupt has found with these registers. `can_trap` says whether traps come to the
/// library. Async-signal-safe.
fn goes_on(
    thread: &Thread,
    registers: &mut [libc::greg_t; 23],
    can_trap: impl Fn() -> bool,
) -> bool {
    registers[libc::REG_EFL as usize] &= !TRAP_FLAG;
    let sleep = Sleep::of(registers);
    let callers = thread.top_words(registers[libc::REG_RSP as usize] as u64);
    // A late one, for a request that the thread has left, is ignored.
    if !thread.must_end() {
        if sleep.operations(callers).is_some() {
            // The function takes it for the end of its wait, and the records stay.
            Sleep::go_on(registers);
        }
        return true;
    }
    if !thread.can_be_cut() || thread.is_critical() {
        thread.set_pending(true);
        return true;
    }
    let turn = thread.turn(sleep, callers, &can_trap);
    if let Turn::Fails(error) = turn {
        registers[libc::REG_RAX as usize] = -i64::from(error);
    }
    let goes_on = !matches!(turn, Turn::Lands);
    if goes_on && thread.is_single_stepping() {
        registers[libc::REG_EFL as usize] |= TRAP_FLAG;
    }
    goes_on
}

/// Whether the library gets the traps of a thread with that signal mask: the kernel ends the process for one that
/// is blocked or ignored, and a handler that the server has installed since would not expect it.
/// Async-signal-safe.
fn traps_come_here(mask: &libc::sigset_t) -> bool {
    // SAFETY: reads the set.
    let blocked = unsafe { libc::sigismember(ptr::from_ref(mask), libc::SIGTRAP) } != 0;
    let ours = |action: libc::sigaction| action.sa_sigaction == vmsrs_handler as *const () as usize;
    !blocked && disposition(libc::SIGTRAP).is_ok_and(ours)
}

/// Does what would have happened without the library.
///
/// # Safety
///
/// The arguments are those of a signal handler.
unsafe fn chain(
    signal: c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::ucontext_t,
    is_child: bool,
) {
    // Handlers start with all keys closed, and the server's may read guarded memory.
    pkru::open_guard();
    let (function, flags) = signals::previous(signal).map_or((libc::SIG_DFL, 0), |action| {
        (action.sa_sigaction, action.sa_flags)
    });
    // SAFETY: the kernel's information.
    let sent = unsafe { (*info).si_code } <= 0;
    // It expects what it asked for, and no more.
    let wanted = signals::previous(signal).map(|action| Signals::read(&action.sa_mask));
    // SAFETY: the kernel's context of this thread.
    let before = Signals::read(unsafe { &(*context).uc_sigmask });
    before
        .with(wanted.unwrap_or_default())
        .with(signals::handled())
        .block();
    match function {
        libc::SIG_DFL | libc::SIG_IGN if signal == interrupt() => {}
        libc::SIG_IGN if sent => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            if !is_child {
                write_stderr(
                    b"vmsrs: an error outside of requests; the process ends, committed domains are whole\n",
                );
            }
            if dispositions::are_the_parents(is_child) {
                dispositions::end_child();
            }
            // SAFETY: all zero but the function is the default disposition.
            unsafe {
                let mut default: libc::sigaction = zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const default, ptr::null_mut());
            }
            if sent || signals::message(signal).is_some() {
                // It is blocked now, and delivered when the handler has returned.
                // SAFETY: sends this thread a signal.
                unsafe { libc::raise(signal) };
            }
            // A fault of the code itself recurs when its instruction is retried.
        }
        function if flags & libc::SA_SIGINFO != 0 => {
            type Full = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            // SAFETY: a handler installed with SA_SIGINFO has this signature.
            unsafe { std::mem::transmute::<usize, Full>(function)(signal, info, context.cast()) }
        }
        function => {
            // SAFETY: a handler installed without SA_SIGINFO has this signature.
            unsafe {
                std::mem::transmute::<usize, unsafe extern "C" fn(c_int)>(function)(signal);
            }
        }
    }
}
