//! Broken memory of the host, met by a virtual CPU.
//!
//! When a guest touches memory that the hardware has reported as broken, KVM sends SIGBUS
//! (`BUS_MCEERR_AR`, with the address in this process) to the thread of the virtual CPU and leaves
//! `KVM_RUN` with EINTR. The handler notes the address for that thread, which looks at it before it
//! enters the guest again. SIGBUS anywhere else means what it always does: the end of the process.

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::OnceLock;

/// `si_code` of SIGBUS for an access to broken memory (`BUS_MCEERR_AR` in Linux's
/// `asm-generic/siginfo.h`).
const BUS_MCEERR_AR: libc::c_int = 4;
/// For broken memory that nobody has touched yet; the scrubber finds it.
const BUS_MCEERR_AO: libc::c_int = 5;

thread_local! {
    /// This thread is in `KVM_RUN`.
    static IN_GUEST: Cell<bool> = const { Cell::new(false) };
    /// Address of the broken memory that it touched there, or 0.
    static TOUCHED: Cell<usize> = const { Cell::new(0) };
}

/// Notes broken memory for threads that are in a [`watched`] call, from now on.
///
/// # Errors
///
/// Fails when the system refuses the handler.
pub(crate) fn install() -> io::Result<()> {
    static RESULT: OnceLock<Option<i32>> = OnceLock::new();
    let failed = RESULT.get_or_init(|| {
        // SAFETY: all zeros is a valid value of this structure.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(_, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
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

/// Makes a call into the guest. [`take`] says afterwards whether it met broken memory.
pub(crate) fn watched<T>(enter: impl FnOnce() -> T) -> T {
    TOUCHED.set(0);
    IN_GUEST.set(true);
    let result = enter();
    IN_GUEST.set(false);
    result
}

/// The address of the broken memory that this thread's last call met.
pub(crate) fn take() -> Option<usize> {
    Some(TOUCHED.take()).filter(|&address| address != 0)
}

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid structure, and SIGBUS has an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code == BUS_MCEERR_AR && IN_GUEST.get() {
        TOUCHED.set(address);
    } else if code != BUS_MCEERR_AO {
        // The access that raised it happens again, and ends the process.
        // SAFETY: async-signal-safe, and the default needs no function.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does when a thread touches broken memory, but for the memory.
    fn touch(address: usize) {
        // SAFETY: all zeros is a valid value of this structure.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        info.si_code = BUS_MCEERR_AR;
        // SAFETY: the address follows the three numbers, aligned to 8 bytes (`sigaction(2)`).
        unsafe { (&raw mut info).cast::<usize>().add(2).write(address) };
        on_sigbus(libc::SIGBUS, &mut info, ptr::null_mut());
    }

    #[test]
    fn broken_memory_that_the_guest_touches_is_noted_once_for_its_own_thread() {
        install().unwrap();
        watched(|| touch(0x1234_5000));
        let other = std::thread::spawn(take).join().unwrap();
        assert_eq!(other, None);
        assert_eq!(take(), Some(0x1234_5000));
        assert_eq!(take(), None);
        watched(|| touch(0x1000));
        watched(|| ());
        assert_eq!(take(), None, "what an earlier call met is over");
    }
}
