//! Broken memory of the host, met by a virtual CPU or by a device.
//!
//! When a guest touches memory that the hardware has reported as broken, KVM sends SIGBUS
//! (`BUS_MCEERR_AR`, with the address in this process) to the thread of the virtual CPU and leaves
//! `KVM_RUN` with EINTR. The handler notes the address for that thread, which looks at it before it
//! enters the guest again.
//!
//! A device meets broken memory with an access of its own, to a ring or a buffer in the guest's RAM,
//! and that access cannot be left undone. Devices have a mapping of RAM that is theirs alone
//! ([`crate::vmm::memory::for_devices`]): the handler puts zeros in the place of the page there, where
//! the guest does not see them, so that the access comes to an end, and notes the address. The device
//! looks at the note before what it has read has any effect, and then stops, and the guest ends.
//!
//! SIGBUS anywhere else means what it always does: the end of the process.

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::OnceLock;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::memory::{GuestRam, PAGE_SIZE};
use crate::host_memory::HUGE_PAGE;

/// `si_code` of SIGBUS for an access to broken memory (`BUS_MCEERR_AR` in Linux's
/// `asm-generic/siginfo.h`).
const BUS_MCEERR_AR: libc::c_int = 4;
/// For broken memory that has not been touched yet; the scrubber finds it.
const BUS_MCEERR_AO: libc::c_int = 5;

/// RAM lies below the hole under 4 GiB and above it.
const RANGES: usize = 2;

thread_local! {
    /// This thread is in `KVM_RUN`.
    static IN_GUEST: Cell<bool> = const { Cell::new(false) };
    /// First and last address of the devices' mapping of RAM, while this thread works for a device.
    static GUARDED: Cell<[(usize, usize); RANGES]> = const { Cell::new([(1, 0); RANGES]) };
    /// Address of the broken memory that it touched there, or 0.
    static TOUCHED: Cell<usize> = const { Cell::new(0) };
}

/// Notes broken memory for threads that are in a [`watched`] or [`guarded`] call, from now on.
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

/// Does a device's work on `ram`, its own mapping. An access to broken memory there reads zeros or
/// writes to nowhere; [`is_noted`] and [`take`] tell.
///
/// # Errors
///
/// Fails, without having done anything, when the system refuses the handler.
pub(crate) fn guarded<T>(ram: &GuestRam, work: impl FnOnce() -> T) -> io::Result<T> {
    install()?;
    let mut ranges = [(1, 0); RANGES];
    for (range, region) in ranges.iter_mut().zip(ram.iter()) {
        let start = region.as_ptr() as usize;
        // No region is empty.
        *range = (start, start + (region.len() - 1) as usize);
    }
    TOUCHED.set(0);
    GUARDED.set(ranges);
    let result = work();
    GUARDED.set([(1, 0); RANGES]);
    Ok(result)
}

/// Whether this thread has met broken memory since it was asked last by [`take`].
pub(crate) fn is_noted() -> bool {
    TOUCHED.get() != 0
}

/// The address of the broken memory that this thread's last call met.
pub(crate) fn take() -> Option<usize> {
    Some(TOUCHED.take()).filter(|&address| address != 0)
}

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid structure, and SIGBUS has an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let ranges = GUARDED.get();
    let guarded = ranges
        .iter()
        .any(|&(first, last)| (first..=last).contains(&address));
    // For a device also when the system has no memory to back a page: it cannot be had either
    // way.
    let met = match guarded {
        true => code != BUS_MCEERR_AO && put_zeros_at(address),
        false => code == BUS_MCEERR_AR && IN_GUEST.get(),
    };
    if met {
        TOUCHED.set(address);
    } else if code != BUS_MCEERR_AO {
        // The access that raised it happens again, and ends the process.
        // SAFETY: async-signal-safe, and the default needs no function.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
}

/// Puts a page of zeros in the place of the one at an address of the devices' mapping of RAM; false if
/// the system refuses. Async-signal-safe: system calls, and `errno` is as it was.
fn put_zeros_at(address: usize) -> bool {
    let put = |size: usize| {
        let page = address & !(size - 1);
        // SAFETY: the page lies in the devices' mapping of RAM, which has no Rust object in it: accesses
        // are volatile, and see other bytes at any time.
        let mapped = unsafe {
            libc::mmap(
                page as *mut libc::c_void,
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        mapped != libc::MAP_FAILED
    };
    // SAFETY: the location is the thread's own.
    unsafe {
        let errno = *libc::__errno_location();
        // A mapping of huge pages, which cannot be split, is a multiple of them at both ends, and refuses
        // anything smaller in this way.
        let done = put(PAGE_SIZE as usize)
            || *libc::__errno_location() == libc::EINVAL && put(HUGE_PAGE as usize);
        *libc::__errno_location() = errno;
        done
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::host_memory::HostPages;
    use crate::vmm::memory::{Layout, MIN_RAM, for_devices, tests::lose};

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
    fn broken_memory_is_noted_once_per_thread() {
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

    #[test]
    fn device_reads_private_zeros_from_broken_ram() {
        let layout = Layout::new(MIN_RAM).unwrap();
        let ram = layout.allocate(HostPages::Standard).unwrap();
        let page = MIN_RAM - PAGE_SIZE;
        ram.write_obj(7u64, GuestAddress(page)).unwrap();
        let devices = for_devices(&ram).unwrap();
        assert_eq!(devices.read_obj::<u64>(GuestAddress(page)).unwrap(), 7);
        // Accesses to this page raise SIGBUS from now on, as to broken memory.
        lose(&ram, page);
        let read = guarded(&devices, || {
            let read: u64 = devices.read_obj(GuestAddress(page)).unwrap();
            assert!(is_noted());
            read
        });
        assert_eq!(read.unwrap(), 0);
        let address = devices.get_host_address(GuestAddress(page)).unwrap();
        assert_eq!(take(), Some(address as usize));
        devices.write_obj(9u64, GuestAddress(page)).unwrap();
        lose(&ram, MIN_RAM);
        assert_eq!(ram.read_obj::<u64>(GuestAddress(page)).unwrap(), 0);
        assert_eq!(take(), None);
    }
}
