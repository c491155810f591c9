//! The handler of SIGBUS, for all of the process.

use std::io;
use std::ptr;
use std::sync::OnceLock;

use libc::{REG_RAX, REG_RDX, REG_RIP, c_int, c_void, siginfo_t, ucontext_t};

use super::routines;

/// `si_code` of SIGBUS for an access to broken memory (`BUS_MCEERR_AR` in Linux's
/// `asm-generic/siginfo.h`).
pub(crate) const BUS_MCEERR_AR: c_int = 4;
/// For broken memory that has not been touched yet; the scrubber finds it.
pub(crate) const BUS_MCEERR_AO: c_int = 5;

/// Deals with an access outside of the routines, of which it gets the `si_code` and the address. False if it
/// does not know the access. Must be async-signal-safe.
pub(crate) type Resolver = fn(c_int, usize) -> bool;

static RESOLVER: OnceLock<Resolver> = OnceLock::new();

/// Installs the handler, once.
///
/// # Errors
///
/// Fails when the system refuses it.
pub(crate) fn install() -> io::Result<()> {
    static RESULT: OnceLock<Option<i32>> = OnceLock::new();
    let failed = RESULT.get_or_init(|| {
        // SAFETY: all zeros is a valid value of this structure.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(_, *mut siginfo_t, *mut c_void) = on_sigbus;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the structure is valid, and the handler does nothing but what signal handlers may.
        match unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) } {
            0 => None,
            _ => io::Error::last_os_error()
                .raw_os_error()
                .or(Some(libc::EINVAL)),
        }
    });
    match *failed {
        None => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Lets a function deal with accesses outside of the routines: the first one that is given, for good.
pub(crate) fn resolve_with(resolver: Resolver) {
    RESOLVER.get_or_init(|| resolver);
}

extern "C" fn on_sigbus(_: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes valid structures, and SIGBUS has an address.
    let (code, address, registers) = unsafe {
        let context = &mut *context.cast::<ucontext_t>();
        let registers = &mut context.uc_mcontext.gregs;
        ((*info).si_code, (*info).si_addr() as usize, registers)
    };
    if code == BUS_MCEERR_AO {
        return;
    }
    // A positive code: this thread's access, and not another process's `kill`.
    let interrupted = registers[REG_RIP as usize] as usize;
    if code > 0
        && let Some(exit) = routines::exit_of(interrupted)
    {
        registers[REG_RIP as usize] = exit as i64;
        registers[REG_RAX as usize] = address as i64;
        registers[REG_RDX as usize] = code.into();
        return;
    }
    let resolver = RESOLVER.get();
    if code > 0 && resolver.is_some_and(|resolver| resolver(code, address)) {
        return;
    }
    // The access that raised it happens again, and ends the process.
    // SAFETY: async-signal-safe, and the default needs no function.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    if code <= 0 {
        // No access of this thread raised it.
        // SAFETY: async-signal-safe; the signal is blocked until the handler returns.
        unsafe { libc::raise(libc::SIGBUS) };
    }
}
