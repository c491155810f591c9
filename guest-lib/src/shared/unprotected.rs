//! An app without a device: the same addresses, locks and extents in plain memory of the process.
//!
//! Nothing is versioned: after an error the domain keeps what the failed request wrote. It is for
//! laptops and for tests; a server says what it has with [`crate::App::protection`].

use crate::error::Error;
use crate::os::clock;
use crate::os::dispositions;
use crate::os::futex;
use crate::os::identity::thread_number;
use crate::os::lock::Lock;
use crate::os::sanitizer;
use crate::os::view::View;
use crate::shared::backend::{Backend, FoundDomain, Registration, Tags};
use crate::shared::control::Control;
use crate::shared::waits::Waits;
use crate::shared::word::{self, Released};
use bytemuck::Zeroable;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vmsrs_protocol::control::Extent;
use vmsrs_protocol::ioctl::{IoctlDomainInfo, IoctlFail, IoctlInfo, LOCKS_LENGTH};
use vmsrs_protocol::shared::{LOCK_DELETED, LOCK_TAG, LOCK_WAITERS, ThreadControl, WrittenPages};
use vmsrs_protocol::{
    APP_BASE, APP_PAGES, EXTENT_MAX_PAGES, EXTENT_UNIT_PAGES, MAX_APPS, MAX_DOMAINS, PAGE_SIZE,
};

/// A waiter looks for cycles again after this time.
const SLICE: Duration = Duration::from_millis(100);

/// Tags of one registration or refill.
const TAGS: u64 = 1 << 16;

static NEXT_TAG: AtomicU64 = AtomicU64::new(1);
static NEXT_INCIDENT: AtomicU64 = AtomicU64::new(1);

#[derive(Debug, Default)]
struct Tables {
    domains: HashMap<Vec<u8>, u32>,
    extents: Vec<Vec<Extent>>,
    next_page: u32,
    /// Numbers of deleted domains.
    free: Vec<u32>,
    /// Extents of deleted domains: all zero, and mapped without any rights.
    free_extents: Vec<Extent>,
}

/// An app in plain memory.
#[derive(Debug)]
pub(crate) struct Unprotected {
    number: u32,
    base: u64,
    pages: u32,
    locks: NonNull<AtomicU64>,
    /// Guards the tables, and that an extent is in them only when it is mapped.
    tables: Lock<Tables>,
    /// Changes whenever a lock with waiters is released; futexes wait on it.
    releases: AtomicU32,
    waits: Waits,
    threads: Lock<Vec<Registered>>,
}

/// A thread, to be interrupted when its request fails.
#[derive(Clone, Copy, Debug)]
struct Registered {
    number: u32,
    control: Control,
    signal: i32,
}

// SAFETY: the lock words are atomics that live as long as the process; a mutex guards the rest.
unsafe impl Send for Unprotected {}
// SAFETY: as above.
unsafe impl Sync for Unprotected {}

fn map(address: *mut u8, length: usize, protection: i32, flags: i32) -> io::Result<NonNull<u8>> {
    // SAFETY: replaces no mapping, or (MAP_FIXED) only a reservation of this module.
    let place = unsafe {
        libc::mmap(
            address.cast(),
            length,
            protection,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | flags,
            -1,
            0,
        )
    };
    if place == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(place.cast()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

impl Unprotected {
    /// Reserves the addresses of app `number`.
    ///
    /// # Errors
    ///
    /// [`Error::Map`] when they are taken, [`Error::System`] when there are too many apps.
    pub(crate) fn open(number: u32) -> Result<Self, Error> {
        if number >= MAX_APPS {
            let full = io::Error::from_raw_os_error(libc::ENOSPC);
            return Err(Error::system("opening one more app")(full));
        }
        let (base, pages) = if sanitizer::with_fixed_addresses().is_some() {
            sanitizer::APPS
        } else {
            (APP_BASE, APP_PAGES)
        };
        let length = u64::from(pages) * u64::from(PAGE_SIZE);
        let address = base + u64::from(number) * length;
        let refused = |source| Error::Map { address, source };
        let base = map(
            address as *mut u8,
            length as usize,
            libc::PROT_NONE,
            libc::MAP_FIXED_NOREPLACE,
        )
        .map_err(refused)?;
        if base.as_ptr() as u64 != address {
            return Err(refused(io::Error::from_raw_os_error(libc::EEXIST)));
        }
        let read_write = libc::PROT_READ | libc::PROT_WRITE;
        let locks = map(ptr::null_mut(), LOCKS_LENGTH as usize, read_write, 0).map_err(refused)?;
        Ok(Self {
            number,
            base: address,
            pages,
            locks: locks.cast(),
            tables: Lock::default(),
            releases: AtomicU32::new(0),
            waits: Waits::default(),
            threads: Lock::default(),
        })
    }
}

impl Unprotected {
    fn release(&self, held: &[u32], tag: u64) -> io::Result<()> {
        for &domain in held {
            if word::release(self.lock_word(domain), tag) == Released::WithWaiters {
                self.lock_wake(domain)?;
            }
        }
        Ok(())
    }

    /// Interrupts the other threads that work for a request.
    fn interrupt(&self, tag: u64) {
        let me = thread_number();
        self.threads.with(|threads| {
            for thread in threads.iter().filter(|thread| thread.number != me) {
                if thread.control.tag() == tag {
                    thread.control.set_failed(tag);
                    // SAFETY: a thread of this process, and a signal that the library handles.
                    unsafe {
                        libc::syscall(
                            libc::SYS_tgkill,
                            libc::getpid(),
                            thread.number,
                            thread.signal,
                        )
                    };
                }
            }
        });
    }
}

/// Finds or makes an extent of an app whose pages are at these addresses.
fn extent(
    tables: &mut Tables,
    addresses: &Range<u64>,
    domain: u32,
    index: u32,
    pages: u32,
) -> io::Result<Extent> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let (next_page, free) = (tables.next_page, &mut tables.free_extents);
    let extents = tables
        .extents
        .get_mut(domain as usize)
        .ok_or_else(invalid)?;
    if let Some(&extent) = extents.get(index as usize) {
        return Ok(extent);
    }
    if index as usize != extents.len() || pages == 0 || pages > EXTENT_MAX_PAGES {
        return Err(invalid());
    }
    let pages = pages.next_multiple_of(EXTENT_UNIT_PAGES);
    let app_pages = ((addresses.end - addresses.start) / u64::from(PAGE_SIZE)) as u32;
    let used_before = free.iter().position(|extent| extent.pages == pages);
    let page = used_before.map_or(next_page, |place| free[place].page);
    if used_before.is_none() && pages > app_pages - page {
        return Err(io::Error::from_raw_os_error(libc::ENOMEM));
    }
    let bytes = u64::from(PAGE_SIZE);
    let address = addresses.start + u64::from(page) * bytes;
    // SAFETY: inside this app's reservation, and handed out to nobody yet.
    let outcome = unsafe {
        libc::mprotect(
            address as *mut libc::c_void,
            (u64::from(pages) * bytes) as usize,
            libc::PROT_READ | libc::PROT_WRITE,
        )
    };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    let extent = Extent { page, pages };
    extents.push(extent);
    match used_before {
        Some(place) => drop(free.swap_remove(place)),
        None => tables.next_page = page + pages,
    }
    Ok(extent)
}

/// Gives the memory of an extent back, of an app whose pages begin at `base`.
fn give_back(base: u64, extent: Extent) -> io::Result<()> {
    let bytes = u64::from(PAGE_SIZE);
    let address = base + u64::from(extent.page) * bytes;
    // Replaced in one call: the extent is there as a whole, or not at all.
    map(
        address as *mut u8,
        (u64::from(extent.pages) * bytes) as usize,
        libc::PROT_NONE,
        libc::MAP_FIXED,
    )
    .map(drop)
}

impl Backend for Unprotected {
    fn protects(&self) -> bool {
        false
    }

    fn number(&self) -> u32 {
        self.number
    }

    fn addresses(&self) -> Range<u64> {
        self.base..self.base + u64::from(self.pages) * u64::from(PAGE_SIZE)
    }

    fn lock_word(&self, domain: u32) -> &AtomicU64 {
        assert!(domain < MAX_DOMAINS);
        // SAFETY: inside the mapping by the check; it stays forever.
        unsafe { self.locks.add(domain as usize).as_ref() }
    }

    fn open_domain(&self, key: &[u8], _: u32) -> io::Result<FoundDomain> {
        let found = |number| FoundDomain {
            number,
            flags: 0,
            deletions: 0,
        };
        // Copied first: the caller's memory is not read under the lock.
        let key = key.to_vec();
        self.tables.with(|tables| {
            if let Some(&domain) = tables.domains.get(&key) {
                return Ok(found(domain));
            }
            if let Some(domain) = tables.free.pop() {
                // Who knew the number has noted the deletion.
                self.lock_word(domain).store(0, Ordering::SeqCst);
                tables.domains.insert(key, domain);
                return Ok(found(domain));
            }
            let domain = tables.extents.len() as u32;
            if domain >= MAX_DOMAINS {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            tables.extents.push(Vec::new());
            tables.domains.insert(key, domain);
            Ok(found(domain))
        })
    }

    fn delete(&self, tag: u64, domain: u32) -> io::Result<()> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        self.tables.with(|tables| {
            let found = |(_, number): &(&Vec<u8>, &u32)| **number == domain;
            let key = tables
                .domains
                .iter()
                .find(found)
                .map(|(key, _)| key.clone());
            let key = key.ok_or_else(invalid)?;
            let word = self.lock_word(domain);
            if word.load(Ordering::SeqCst) & LOCK_TAG != tag {
                return Err(io::Error::from_raw_os_error(libc::EPERM));
            }
            word.store(LOCK_DELETED, Ordering::SeqCst);
            tables.domains.remove(&key);
            for extent in std::mem::take(&mut tables.extents[domain as usize]) {
                // Where the kernel refuses, the addresses and their memory stay unused.
                if give_back(self.base, extent).is_ok() {
                    tables.free_extents.push(extent);
                }
            }
            tables.free.push(domain);
            Ok(())
        })?;
        self.lock_wake(domain)
    }

    /// Nobody else knows the app's domains.
    fn deleted(&self, after: u64, _: &mut [u32]) -> io::Result<(usize, u64)> {
        Ok((0, after))
    }

    fn domain_info(&self, domain: u32) -> io::Result<IoctlDomainInfo> {
        self.tables.with(|tables| {
            let extents = tables.extents.get(domain as usize);
            let extents = extents.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
            let pages = extents.iter().map(|extent| extent.pages).sum();
            Ok(IoctlDomainInfo {
                domain,
                extents: extents.len() as u32,
                pages,
                committed: pages,
                ..IoctlDomainInfo::default()
            })
        })
    }

    /// A copy: there are no versions that could be kept.
    fn lease(&self, domain: u32, address: u64, length: usize) -> io::Result<View> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let offset = address.checked_sub(self.base).ok_or_else(invalid)?;
        let bytes = u64::from(PAGE_SIZE);
        let holds = |extent: &Extent| {
            let start = u64::from(extent.page) * bytes;
            let size = u64::from(extent.pages) * bytes;
            offset >= start && offset - start < size && length as u64 <= size - (offset - start)
        };
        let known = self.tables.with(|tables| {
            let extents = tables.extents.get(domain as usize);
            extents.is_some_and(|extents| extents.iter().any(holds))
        });
        let first = NonNull::new(address as *mut u8).filter(|_| known && length > 0);
        // SAFETY: an extent's pages can be read.
        unsafe { View::copy_of(first.ok_or_else(invalid)?, length) }
    }

    fn extent(&self, domain: u32, index: u32, pages: u32) -> io::Result<Extent> {
        self.tables
            .with(|tables| extent(tables, &self.addresses(), domain, index, pages))
    }

    fn register(&self, signal: i32, _keys: u32) -> io::Result<Registration> {
        let control = NonNull::from(Box::leak(Box::new(ThreadControl::zeroed())));
        let registered = Registered {
            number: thread_number(),
            // SAFETY: leaked, and off this list before it is freed.
            control: unsafe { Control::new(control) },
            signal,
        };
        self.threads.with(|threads| threads.push(registered));
        Ok(Registration {
            control,
            written: NonNull::from(Box::leak(Box::new(bytemuck::Zeroable::zeroed()))),
            tags: self.tags()?,
        })
    }

    fn unregister(&self, control: NonNull<ThreadControl>) {
        // SAFETY: leaked by register(), and its thread has not ended yet.
        let tag = unsafe { Control::new(control) }.tag();
        if tag != 0 {
            self.interrupt(tag);
        }
        self.threads
            .with(|threads| threads.retain(|thread| thread.control.block() != control));
    }

    fn unmap(&self, control: NonNull<ThreadControl>, written: NonNull<WrittenPages>) {
        // SAFETY: leaked by register(), and its thread ends.
        drop(unsafe {
            (
                Box::from_raw(control.as_ptr()),
                Box::from_raw(written.as_ptr()),
            )
        });
    }

    fn tags(&self) -> io::Result<Tags> {
        let next = NEXT_TAG.fetch_add(TAGS, Ordering::Relaxed);
        Ok(Tags {
            next,
            end: next + TAGS,
        })
    }

    fn commit(&self, _tag: u64, _domain: u32, _flags: u32) -> io::Result<()> {
        Ok(())
    }

    fn fail(&self, report: &mut IoctlFail, held: &[u32]) -> io::Result<()> {
        self.interrupt(report.tag);
        self.release(held, report.tag)?;
        report.incident = NEXT_INCIDENT.fetch_add(1, Ordering::Relaxed);
        report.handled = dispositions::others().bits();
        if report.detected_ns != 0 {
            report.recovery_ns = clock::now().saturating_sub(report.detected_ns);
        }
        Ok(())
    }

    fn discard(&self, _tag: u64) -> io::Result<()> {
        Ok(())
    }

    fn drafts(&self, _: u64, _: u32, _: usize, _: &mut [u32]) -> io::Result<usize> {
        Ok(0)
    }

    fn suspend(&self, _tag: u64, _deadline_ns: u64) -> io::Result<()> {
        Ok(())
    }

    fn resume(&self, _tag: u64) -> io::Result<()> {
        Ok(())
    }

    fn abandon(&self, tag: u64, held: &[u32]) -> io::Result<()> {
        self.release(held, tag)
    }

    fn lock_wait(
        &self,
        tag: u64,
        domain: u32,
        milliseconds: u32,
        is_pending: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        let word = self.lock_word(domain);
        let end = Instant::now() + Duration::from_millis(milliseconds.into());
        loop {
            let epoch = self.releases.load(Ordering::SeqCst);
            let now = word.load(Ordering::SeqCst);
            if now == 0 {
                // Others may wait still: keep the bit, so that the release wakes them.
                let taken = tag | LOCK_WAITERS;
                if word
                    .compare_exchange(0, taken, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
                {
                    return Ok(());
                }
                continue;
            }
            if now & LOCK_TAG == tag {
                return Err(io::Error::from_raw_os_error(libc::EEXIST));
            }
            if now & LOCK_TAG == LOCK_DELETED {
                return Err(io::Error::from_raw_os_error(libc::EIDRM));
            }
            let marked = now | LOCK_WAITERS;
            if now != marked
                && word
                    .compare_exchange(now, marked, Ordering::SeqCst, Ordering::Relaxed)
                    .is_err()
            {
                continue;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
            }
            if is_pending() {
                // The interrupt came before the sleep, which it would have ended.
                return Err(io::Error::from_raw_os_error(libc::EINTR));
            }
            let holder = |domain| self.lock_word(domain).load(Ordering::SeqCst) & LOCK_TAG;
            if !self.waits.enter(tag, domain, holder) {
                return Err(io::Error::from_raw_os_error(libc::EDEADLK));
            }
            let slept = futex::wait(&self.releases, epoch, left.min(SLICE));
            self.waits.leave(tag, domain);
            if let Err(error) = slept
                && error.raw_os_error() == Some(libc::EINTR)
            {
                return Err(error);
            }
        }
    }

    fn lock_wake(&self, _domain: u32) -> io::Result<()> {
        self.releases.fetch_add(1, Ordering::SeqCst);
        futex::wake_all(&self.releases);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn info(&self) -> io::Result<IoctlInfo> {
        Ok(IoctlInfo::default())
    }

    /// A child has its own copy of everything, as with any memory.
    fn after_fork(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::mock::MockBackend;
    use crate::{Error, Kind, Options, RunError, thread};
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn interrupt_just_before_a_lock_wait_ends_it() {
        let app = MockBackend::app("interrupt before a wait", |_| ());
        let [one, two] = ["one", "two"].map(|key| app.domain(key).unwrap());
        let (held, is_held) = mpsc::channel();
        let (free, freed) = mpsc::channel::<()>();
        let holder = std::thread::spawn(move || {
            one.run(|_| {
                held.send(()).unwrap();
                freed.recv().unwrap();
                Ok::<_, Error>(())
            })
        });
        is_held.recv().unwrap();
        let patient = Options {
            lock_timeout: Some(Duration::from_secs(3600)),
            ..Options::default()
        };
        let outcome = two.run_with(&patient, |request| {
            // What the handler does in critical code.
            thread::current().unwrap().set_pending(true);
            request.enter(one).map(|entered| entered.keep().number())
        });
        match outcome {
            Err(RunError::Failed(failure)) => assert_eq!(failure.kind, Kind::Deadline),
            other => panic!("{other:?}"),
        }
        free.send(()).unwrap();
        holder.join().unwrap().unwrap();
        one.run(|request| request.alloc(1u8).map(drop)).unwrap();
    }
}
