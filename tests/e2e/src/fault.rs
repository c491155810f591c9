//! Stores and loads that fault, and how they did.

use std::arch::naked_asm;
use std::io;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// The signal that a store or load got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The signal.
    pub signal: i32,
    /// `si_code`.
    pub code: i32,
    /// `si_addr`.
    pub address: u64,
    /// The instruction pointer at that moment.
    pub instruction: u64,
}

/// `si_code` of an access that a protection key forbids.
pub const SEGV_PKUERR: i32 = 4;

static SIGNAL: AtomicI32 = AtomicI32::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);
static INSTRUCTION: AtomicU64 = AtomicU64::new(0);

/// Stores `value` at `address`; its first instruction is the store.
///
/// # Safety
///
/// The store must be sound or fault.
#[unsafe(naked)]
pub unsafe extern "C" fn store(_address: *mut u8, _value: u8) {
    naked_asm!("mov byte ptr [rdi], sil", "ret")
}

/// Stores to the null pointer, which ends the request in which it is called.
pub fn wild_write() {
    // SAFETY: faults.
    unsafe { store(std::ptr::null_mut(), 1) };
}

/// Address of the instruction that [`try_store`] stores with.
pub fn store_instruction() -> u64 {
    store as *const () as u64
}

/// Loads the byte at `address`; its first instruction is the load.
///
/// # Safety
///
/// The load must be sound or fault.
#[unsafe(naked)]
pub unsafe extern "C" fn load(_address: *const u8) -> u8 {
    naked_asm!("mov al, byte ptr [rdi]", "ret")
}

/// Address of the instruction that [`try_load`] loads with.
pub fn load_instruction() -> u64 {
    load as *const () as u64
}

extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes both to a handler with SA_SIGINFO.
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        let registers = &mut context.uc_mcontext.gregs;
        let rip = registers[libc::REG_RIP as usize] as u64;
        CODE.store((*info).si_code, Ordering::Relaxed);
        ADDRESS.store((*info).si_addr() as u64, Ordering::Relaxed);
        INSTRUCTION.store(rip, Ordering::Relaxed);
        SIGNAL.store(signal, Ordering::Release);
        if rip != store_instruction() && rip != load_instruction() {
            // Any other instruction: let the signal end the process.
            libc::signal(signal, libc::SIG_DFL);
            return;
        }
        // Return from `store` or `load` as if the access had happened.
        let stack = registers[libc::REG_RSP as usize] as *const i64;
        registers[libc::REG_RIP as usize] = *stack;
        registers[libc::REG_RSP as usize] += 8;
    }
}

/// Stores a byte, or returns the fault that stopped it.
///
/// Replaces the process's handlers of SIGSEGV and SIGBUS.
///
/// # Errors
///
/// The fault, if the store did not happen.
///
/// # Panics
///
/// When a handler cannot be installed.
///
/// # Safety
///
/// The store must be sound where it does not fault.
pub unsafe fn try_store(address: *mut u8, value: u8) -> Result<(), Fault> {
    // SAFETY: sound, as the caller guarantees, or the handler skips it.
    attempt(|| unsafe { store(address, value) })
}

/// Loads a byte, or returns the fault that stopped it.
///
/// Replaces the process's handlers of SIGSEGV and SIGBUS.
///
/// # Errors
///
/// The fault, if the load did not happen.
///
/// # Panics
///
/// When a handler cannot be installed.
///
/// # Safety
///
/// The load must be sound where it does not fault.
pub unsafe fn try_load(address: *const u8) -> Result<u8, Fault> {
    // SAFETY: sound, as the caller guarantees, or the handler skips it.
    attempt(|| unsafe { load(address) })
}

fn attempt<T>(access: impl FnOnce() -> T) -> Result<T, Fault> {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: `action` is fully initialized; the handler is async-signal-safe.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction =
                handler as extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(signal, &action, std::ptr::null_mut())
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }
    SIGNAL.store(0, Ordering::Release);
    let value = access();
    match SIGNAL.load(Ordering::Acquire) {
        0 => Ok(value),
        signal => Err(Fault {
            signal,
            code: CODE.load(Ordering::Relaxed),
            address: ADDRESS.load(Ordering::Relaxed),
            instruction: INSTRUCTION.load(Ordering::Relaxed),
        }),
    }
}
