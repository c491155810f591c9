//! Hot domains: what the driver says about them, and the claims of the requests that are inside.
//!
//! A domain is hot while what nearly every request in it writes stays mapped writable between requests, under a protection
//! key of the domain. The list of hot domains is a page that only the driver writes. A claim is a word under the key
//! itself: nobody can write it who is not inside a hot domain with that key.

use crate::shared::pkru;
use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use vmsrs_protocol::ioctl::HOT_OFFSET;
use vmsrs_protocol::shared::{HOT_ENTRIES, HotDomain, HotDomains, RESIDENT_MAX};
use vmsrs_protocol::{MAX_DOMAINS, PAGE_SIZE};

/// Pages: the list, and the claims of keys 1 to 15.
const PAGES: usize = 16;

const PAGE: usize = PAGE_SIZE as usize;

/// A process without hot domains. Nobody writes it.
static NONE: HotDomains = HotDomains {
    entries: [0; HOT_ENTRIES],
    domains: [HotDomain {
        domain: MAX_DOMAINS,
        count: 0,
        pages: [0; RESIDENT_MAX],
    }; PAGES],
};

/// The list of hot domains of an app in this process. It stays as long as the process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hot(NonNull<HotDomains>);

// SAFETY: only read by atomic operations, and never unmapped.
unsafe impl Send for Hot {}
// SAFETY: as above.
unsafe impl Sync for Hot {}

impl Hot {
    /// Where there are none.
    pub(crate) fn none() -> Self {
        Self(NonNull::from(&NONE))
    }

    /// Maps the list, and the claims of the keys that the process has for hot domains.
    ///
    /// # Errors
    ///
    /// That of `mmap` or `pkey_mprotect`.
    pub(crate) fn map(fd: RawFd) -> io::Result<Self> {
        // SAFETY: a new mapping.
        let place = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(
                std::ptr::null_mut(),
                PAGES * PAGE,
                libc::PROT_NONE,
                flags,
                -1,
                0,
            )
        };
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let place = NonNull::new(place.cast()).ok_or(io::ErrorKind::InvalidData)?;
        let hot = Self(place);
        hot.map_again(fd).inspect_err(|_| {
            // SAFETY: mapped above, and nobody knows it yet.
            unsafe { libc::munmap(place.as_ptr().cast(), PAGES * PAGE) };
        })?;
        Ok(hot)
    }

    /// Does that in the place of what was there before. Async-signal-safe.
    ///
    /// # Errors
    ///
    /// As [`Hot::map`].
    pub(crate) fn map_again(self, fd: RawFd) -> io::Result<()> {
        pkru::domain_keys()
            .try_for_each(|key| self.map_page(fd, key, libc::PROT_READ | libc::PROT_WRITE))?;
        // Last: from then on the driver makes domains hot.
        self.map_page(fd, 0, libc::PROT_READ)
    }

    fn map_page(self, fd: RawFd, key: u32, protection: i32) -> io::Result<()> {
        // SAFETY: a page of this mapping.
        let place = unsafe { self.0.as_ptr().byte_add(key as usize * PAGE) };
        let offset = HOT_OFFSET + u64::from(key) * u64::from(PAGE_SIZE);
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: replaces that page alone.
        let mapped = unsafe {
            libc::mmap(
                place.cast(),
                PAGE,
                protection,
                flags,
                fd,
                offset as libc::off_t,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: changes the key of the page just mapped.
        let changed =
            unsafe { libc::syscall(libc::SYS_pkey_mprotect, place, PAGE, protection, key) };
        if key != 0 && changed != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The entry of domains with such a number: not 0 if one of them may be hot.
    pub(crate) fn entry(self, domain: u32) -> &'static AtomicU32 {
        let place = domain as usize % HOT_ENTRIES;
        // SAFETY: inside the list, aligned, and never unmapped.
        unsafe {
            let entries = &raw const (*self.0.as_ptr()).entries;
            AtomicU32::from_ptr(entries.cast::<u32>().add(place).cast_mut())
        }
    }

    /// The key of a domain that is hot.
    pub(crate) fn key(self, domain: u32) -> Option<u32> {
        let key = self.entry(domain).load(Ordering::SeqCst);
        // SAFETY: as in entry().
        let domains = unsafe { &raw const (*self.0.as_ptr()).domains };
        let hot = (1..PAGES as u32).contains(&key) && {
            // SAFETY: inside of the list.
            let hot = unsafe { &raw const (*domains.cast::<HotDomain>().add(key as usize)).domain };
            // SAFETY: never unmapped.
            unsafe { hot.read_volatile() == domain }
        };
        hot.then_some(key)
    }

    /// The word of a domain's claim.
    pub(crate) fn claim(self, key: u32, domain: u32) -> &'static AtomicU64 {
        let place = domain as usize % HOT_ENTRIES;
        // SAFETY: one of the claims of a key, which are never unmapped.
        unsafe {
            let claims = self.0.as_ptr().byte_add(key as usize * PAGE).cast::<u64>();
            AtomicU64::from_ptr(claims.add(place))
        }
    }

    /// The resident pages of the hot domain with that key.
    pub(crate) fn pages(self, key: u32) -> impl Iterator<Item = u32> {
        let key = (key as usize).min(PAGES - 1);
        // SAFETY: a domain of the list, which is never unmapped.
        let (count, pages) = unsafe {
            let domains = (&raw const (*self.0.as_ptr()).domains).cast::<HotDomain>();
            let hot = domains.add(key);
            (
                (&raw const (*hot).count).read_volatile(),
                &raw const (*hot).pages,
            )
        };
        let pages = pages.cast::<u32>();
        // SAFETY: inside of the array.
        (0..(count as usize).min(RESIDENT_MAX))
            .map(move |place| unsafe { pages.add(place).read_volatile() })
    }
}
