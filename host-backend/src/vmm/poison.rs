//! Broken memory of the host, met by a virtual CPU or by a device.
//!
//! When a guest touches memory that the hardware has reported as broken, KVM sends SIGBUS
//! (`BUS_MCEERR_AR`, with the address in this process) to the thread of the virtual CPU and leaves
//! `KVM_RUN` with EINTR. The address is noted for that thread, which looks at it before it enters the
//! guest again.
//!
//! A device meets broken memory with an access of its own, to a ring or a buffer in the guest's RAM,
//! and that access cannot be left undone. Devices have a mapping of RAM that is theirs alone
//! ([`crate::vmm::memory::for_devices`]): zeros are put in the place of the page there, where the guest
//! does not see them, so that the access comes to an end, and the address is noted. The device looks at
//! the note before what it has read has any effect, and then stops, and the guest ends.
//!
//! The first access to a page that breaks may name it by another mapping of this process: the kernel then
//! reports one of all that show the page. It has taken the page out of them by then, so the access is made
//! again, and names its own address.

use std::cell::Cell;
use std::io;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::memory::{GuestRam, PAGE_SIZE};
use crate::broken_memory::handler::{self, BUS_MCEERR_AR};
use crate::host_memory::HUGE_PAGE;

/// RAM lies below the hole under 4 GiB and above it.
const RANGES: usize = 2;
/// What a thread has that works for no device.
const UNGUARDED: [(usize, usize); RANGES] = [(1, 0); RANGES];

thread_local! {
    /// This thread is in `KVM_RUN`.
    static IN_GUEST: Cell<bool> = const { Cell::new(false) };
    /// First and last address of the devices' mapping of RAM, while this thread works for a device.
    static GUARDED: Cell<[(usize, usize); RANGES]> = const { Cell::new(UNGUARDED) };
    /// Address of the broken memory that it touched there, or 0.
    static TOUCHED: Cell<usize> = const { Cell::new(0) };
    /// Its last access to broken memory named an address elsewhere, and is being made again.
    static AGAIN: Cell<bool> = const { Cell::new(false) };
}

/// Notes broken memory for threads that are in a [`watched`] or [`guarded`] call, from now on.
///
/// # Errors
///
/// Fails when the system refuses the handler.
pub(crate) fn install() -> io::Result<()> {
    handler::resolve_with(resolve);
    handler::install()
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
    let mut ranges = UNGUARDED;
    for (range, region) in ranges.iter_mut().zip(ram.iter()) {
        let start = region.as_ptr() as usize;
        // No region is empty.
        *range = (start, start + (region.len() - 1) as usize);
    }
    TOUCHED.set(0);
    AGAIN.set(false);
    GUARDED.set(ranges);
    let result = work();
    GUARDED.set(UNGUARDED);
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

/// A [`handler::Resolver`].
fn resolve(code: libc::c_int, address: usize) -> bool {
    let ranges = GUARDED.get();
    let guarded = ranges
        .iter()
        .any(|&(first, last)| (first..=last).contains(&address));
    let met = match guarded {
        // For a device also when the system has no memory to back a page: it cannot be had either way.
        true => put_zeros_at(address),
        false if ranges != UNGUARDED => {
            // The same access a second time is not explained by another mapping.
            return code == BUS_MCEERR_AR && !AGAIN.replace(true);
        }
        false => code == BUS_MCEERR_AR && IN_GUEST.get(),
    };
    if met {
        AGAIN.set(false);
        TOUCHED.set(address);
    }
    met
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

    /// What the handler does when a thread touches broken memory.
    fn touch(address: usize) {
        assert!(resolve(BUS_MCEERR_AR, address));
    }

    #[test]
    fn broken_memory_is_noted_once_per_thread() {
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
    fn an_access_that_names_another_mapping_is_made_once_more() {
        let layout = Layout::new(MIN_RAM).unwrap();
        let ram = layout.allocate(HostPages::Standard).unwrap();
        let devices = for_devices(&ram).unwrap();
        let address = |ram: &GuestRam| ram.get_host_address(GuestAddress(0)).unwrap() as usize;
        let (guest, own) = (address(&ram), address(&devices));
        let done = guarded(&devices, || {
            for _ in 0..2 {
                touch(guest);
                assert!(!is_noted(), "the device has touched nothing yet");
                touch(own);
                assert_eq!(take(), Some(own));
            }
            touch(guest);
            assert!(!resolve(BUS_MCEERR_AR, guest), "it would be made for ever");
        });
        done.unwrap();
        assert!(
            !resolve(BUS_MCEERR_AR, guest),
            "the thread works for no device"
        );
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
