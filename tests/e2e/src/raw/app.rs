//! The driver's ABI without the library: for tests that look at single steps of a request.

use std::cell::Cell;
use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use vmsrs_protocol::device::ABI_VERSION;
use vmsrs_protocol::ioctl::{
    DEVICE_PATH, IOCTL_ABANDON, IOCTL_COMMIT, IOCTL_DISCARD, IOCTL_EXTENT, IOCTL_FAIL, IOCTL_FLUSH,
    IOCTL_INFO, IOCTL_LOCK_WAIT, IOCTL_LOCK_WAKE, IOCTL_OPEN_APP, IOCTL_OPEN_DOMAIN, IOCTL_SUSPEND,
    IOCTL_THREAD, IoctlCommit, IoctlExtent, IoctlFail, IoctlInfo, IoctlLock, IoctlOpenApp,
    IoctlOpenDomain, IoctlSuspend, IoctlTag, IoctlThread,
};
use vmsrs_protocol::shared::{LOCK_TAG, LOCK_WAITERS, ThreadControl};
use vmsrs_protocol::{KEY_MAX, NAME_MAX, NONE, PAGE_SIZE};

/// An open app. Everything stays mapped until the process ends.
pub struct App {
    file: File,
    base: u64,
    locks: NonNull<AtomicU64>,
}

// SAFETY: the lock words are atomics, mapped as long as the process lives; the rest never changes.
unsafe impl Sync for App {}

/// A domain of an app.
#[derive(Clone, Copy, Debug)]
pub struct Domain {
    /// Its number.
    pub number: u32,
}

/// The calling thread's registration.
pub struct Thread<'a> {
    app: &'a App,
    control: NonNull<ThreadControl>,
    next_tag: Cell<u64>,
}

fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

impl App {
    /// Opens the device and an app, and maps its pages and lock words.
    ///
    /// # Errors
    ///
    /// What the system calls say.
    pub fn open(name: &str) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(DEVICE_PATH)
            .with_context(|| format!("open {DEVICE_PATH}"))?;
        let mut argument = IoctlOpenApp {
            name: padded::<NAME_MAX>(name),
            base: 0,
            length: 0,
            pages_offset: 0,
            locks_offset: 0,
            locks_length: 0,
            abi_version: ABI_VERSION,
            app: 0,
        };
        ioctl(&file, IOCTL_OPEN_APP, &mut argument).context("open the app")?;
        let pages = map(
            &file,
            argument.base,
            argument.length,
            argument.pages_offset,
            libc::MAP_FIXED_NOREPLACE,
        )
        .context("map the pages")?;
        ensure!(
            pages.as_ptr() as u64 == argument.base,
            "the pages lie elsewhere"
        );
        let locks = map(&file, 0, argument.locks_length, argument.locks_offset, 0)
            .context("map the lock words")?;
        Ok(Self {
            file,
            base: argument.base,
            locks: locks.cast(),
        })
    }

    /// Opens or makes a domain with at least one extent of `pages` pages, and returns it with the
    /// address of its first page.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub fn domain(&self, key: &str, pages: u32) -> Result<(Domain, *mut u8)> {
        let mut argument = IoctlOpenDomain {
            key: padded::<KEY_MAX>(key),
            key_length: key.len() as u32,
            domain: 0,
            extents: 0,
            flags: 0,
        };
        ioctl(&self.file, IOCTL_OPEN_DOMAIN, &mut argument).context("open the domain")?;
        let domain = Domain {
            number: argument.domain,
        };
        let extent = self.extent(domain, 0, pages).context("the first extent")?;
        Ok((domain, self.address(extent.page)))
    }

    /// Finds or makes an extent.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub fn extent(&self, domain: Domain, index: u32, pages: u32) -> io::Result<IoctlExtent> {
        let mut argument = IoctlExtent {
            domain: domain.number,
            index,
            pages,
            page: 0,
        };
        ioctl(&self.file, IOCTL_EXTENT, &mut argument)?;
        Ok(argument)
    }

    /// Address of a page.
    pub fn address(&self, page: u32) -> *mut u8 {
        (self.base + u64::from(page) * u64::from(PAGE_SIZE)) as *mut u8
    }

    /// Registers the calling thread.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub fn thread(&self) -> Result<Thread<'_>> {
        let mut argument = IoctlThread::default();
        ioctl(&self.file, IOCTL_THREAD, &mut argument).context("register the thread")?;
        let control = map(
            &self.file,
            0,
            u64::from(PAGE_SIZE),
            argument.control_offset,
            0,
        )
        .context("map the control page")?;
        Ok(Thread {
            app: self,
            control: control.cast(),
            next_tag: Cell::new(argument.tag_first),
        })
    }

    /// Waits until everything committed is sealed.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub fn flush(&self) -> io::Result<()> {
        ioctl::<()>(&self.file, IOCTL_FLUSH, &mut ())
    }

    /// The driver's counters.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub fn info(&self) -> io::Result<IoctlInfo> {
        let mut info = IoctlInfo::default();
        ioctl(&self.file, IOCTL_INFO, &mut info)?;
        Ok(info)
    }

    /// Gives a suspended request up.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub fn abandon(&self, tag: u64) -> io::Result<()> {
        ioctl(&self.file, IOCTL_ABANDON, &mut IoctlTag { tag })
    }

    /// The lock word of a domain.
    pub fn lock_word(&self, domain: Domain) -> &AtomicU64 {
        // SAFETY: the mapping has a word for each possible domain and lasts as long as the process.
        unsafe { &*self.locks.as_ptr().add(domain.number as usize) }
    }
}

impl Thread<'_> {
    /// The thread's control block, mapped as long as the process lives.
    pub fn control(&self) -> *mut ThreadControl {
        self.control.as_ptr()
    }

    /// Begins a request that holds the domains, which must be free.
    ///
    /// # Errors
    ///
    /// When a domain is held by another request.
    pub fn begin(&self, domains: &[Domain]) -> Result<u64> {
        let tag = self.next_tag.get();
        self.next_tag.set(tag + 1);
        // SAFETY: the control page is mapped for this thread and lasts as long as the process; the
        // driver only reads it, but for `drafts`.
        unsafe {
            std::ptr::write_volatile(&raw mut (*self.control()).tag, tag);
        }
        self.set_drafts(0);
        for domain in domains {
            // SAFETY: as above.
            unsafe {
                let count = (*self.control()).held_count;
                (*self.control()).held[count as usize] = domain.number;
                std::ptr::write_volatile(&raw mut (*self.control()).held_count, count + 1);
            }
            let word = self.app.lock_word(*domain);
            ensure!(
                word.compare_exchange(0, tag, Ordering::AcqRel, Ordering::Acquire)
                    .is_ok(),
                "domain {} is held by {:#x}",
                domain.number,
                word.load(Ordering::Acquire)
            );
        }
        Ok(tag)
    }

    /// Drafts that the driver has counted in this request.
    pub fn drafts(&self) -> u32 {
        // SAFETY: as in `begin`.
        unsafe { std::ptr::read_volatile(&raw const (*self.control()).drafts) }
    }

    /// What the driver is to count on from, or what a stray write has made of it.
    pub fn set_drafts(&self, drafts: u32) {
        // SAFETY: as in `begin`.
        unsafe {
            std::ptr::write_volatile(&raw mut (*self.control()).drafts, drafts);
            std::ptr::write_volatile(&raw mut (*self.control()).drafts_complement, !drafts);
        }
    }

    /// Whether the driver has written both the count and its complement.
    pub fn drafts_fit(&self) -> bool {
        // SAFETY: as in `begin`.
        let complement =
            unsafe { std::ptr::read_volatile(&raw const (*self.control()).drafts_complement) };
        complement == !self.drafts()
    }

    /// Commits all domains of the request.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub fn commit(&self, tag: u64, flags: u32) -> io::Result<()> {
        let mut argument = IoctlCommit {
            tag,
            flags,
            domain: NONE,
        };
        ioctl(&self.app.file, IOCTL_COMMIT, &mut argument)
    }

    /// Commits one domain of the request.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub fn commit_domain(&self, tag: u64, domain: Domain) -> io::Result<()> {
        let mut argument = IoctlCommit {
            tag,
            flags: 0,
            domain: domain.number,
        };
        ioctl(&self.app.file, IOCTL_COMMIT, &mut argument)
    }

    /// Waits for a domain's lock and takes it for the request.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub fn lock_wait(&self, tag: u64, domain: Domain, timeout_ms: u32) -> io::Result<()> {
        let mut argument = IoctlLock {
            tag,
            domain: domain.number,
            timeout_ms,
        };
        ioctl(&self.app.file, IOCTL_LOCK_WAIT, &mut argument)
    }

    /// Discards the request's drafts without an incident.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub fn discard(&self, tag: u64) -> io::Result<()> {
        ioctl(&self.app.file, IOCTL_DISCARD, &mut IoctlTag { tag })
    }

    /// Sets the request aside. The thread carries it up to [`Thread::put_down`].
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub fn suspend(&self, tag: u64) -> io::Result<()> {
        let mut argument = IoctlSuspend {
            tag,
            deadline_ns: 0,
        };
        ioctl(&self.app.file, IOCTL_SUSPEND, &mut argument)
    }

    /// Fails the request.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub fn fail(&self, tag: u64, kind: u32, address: u64) -> io::Result<IoctlFail> {
        let mut argument = IoctlFail {
            tag,
            kind,
            address,
            ..IoctlFail::default()
        };
        ioctl(&self.app.file, IOCTL_FAIL, &mut argument)?;
        Ok(argument)
    }

    /// Releases what the thread holds and ends the request.
    ///
    /// # Errors
    ///
    /// What the driver says when waiters have to be woken.
    pub fn end(&self) -> io::Result<()> {
        // SAFETY: as in `begin`.
        let (tag, held) = unsafe {
            let control = &*self.control();
            (
                control.tag,
                control.held[..control.held_count as usize].to_vec(),
            )
        };
        for number in held {
            let domain = Domain { number };
            let word = self.app.lock_word(domain);
            if word.load(Ordering::Acquire) & LOCK_TAG != tag {
                continue;
            }
            if word.swap(0, Ordering::AcqRel) & LOCK_WAITERS != 0 {
                let mut argument = IoctlLock {
                    tag: 0,
                    domain: number,
                    timeout_ms: 0,
                };
                ioctl(&self.app.file, IOCTL_LOCK_WAKE, &mut argument)?;
            }
        }
        self.put_down();
        Ok(())
    }

    /// Carries the request no longer, and releases nothing of it.
    pub fn put_down(&self) {
        // SAFETY: as in `begin`.
        unsafe {
            std::ptr::write_volatile(&raw mut (*self.control()).tag, 0);
            std::ptr::write_volatile(&raw mut (*self.control()).held_count, 0);
        }
        self.set_drafts(0);
    }
}

/// Calls the driver.
///
/// # Errors
///
/// What the driver says.
pub fn ioctl<T>(file: &File, number: u32, argument: &mut T) -> io::Result<()> {
    // SAFETY: `argument` is the structure that belongs to the number, valid for the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), u64::from(number), argument as *mut T) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Maps a part of the device.
fn map(
    file: &File,
    address: u64,
    length: u64,
    offset: u64,
    flags: i32,
) -> io::Result<NonNull<c_void>> {
    // SAFETY: either the kernel chooses the address, or MAP_FIXED_NOREPLACE makes sure that nothing
    // is there.
    let pointer = unsafe {
        libc::mmap(
            address as *mut c_void,
            length as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | flags,
            file.as_raw_fd(),
            offset as libc::off_t,
        )
    };
    if pointer == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(pointer).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

/// Reads a byte as the CPU sees it now.
///
/// # Safety
///
/// `address` must be readable.
pub unsafe fn peek(address: *const u8) -> u8 {
    // SAFETY: the caller says so.
    unsafe { std::ptr::read_volatile(address) }
}

/// Writes a byte.
///
/// # Safety
///
/// A write to `address` must be sound, or end in a signal that the caller expects.
pub unsafe fn poke(address: *mut u8, value: u8) {
    // SAFETY: the caller says so.
    unsafe { std::ptr::write_volatile(address, value) }
}
