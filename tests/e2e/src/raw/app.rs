//! An open app: its domains, lock words and counters.

use std::fs::{File, OpenOptions};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vmsrs_protocol::device::ABI_VERSION;
use vmsrs_protocol::ioctl::{
    DEVICE_PATH, IOCTL_ABANDON, IOCTL_EXTENT, IOCTL_FLUSH, IOCTL_INFO, IOCTL_OPEN_APP,
    IOCTL_OPEN_DOMAIN, IOCTL_THREAD, IoctlExtent, IoctlInfo, IoctlOpenApp, IoctlOpenDomain,
    IoctlTag, IoctlThread,
};
use vmsrs_protocol::{KEY_MAX, NAME_MAX, PAGE_SIZE};

use super::ioctl::{advise, ioctl};
use super::thread::Thread;
use crate::limits::EVENT_LIMIT;
use crate::mapping;

/// An open app. Everything stays mapped until the process ends.
pub struct App {
    pub(super) file: File,
    base: u64,
    /// Bytes of the mapping of its pages.
    length: usize,
    locks: NonNull<AtomicU64>,
}

// SAFETY: the lock words are atomics that stay mapped until the process ends; the rest never changes.
unsafe impl Sync for App {}

/// A domain of an app.
#[derive(Clone, Copy, Debug)]
pub struct Domain {
    /// Its number.
    pub number: u32,
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
    /// The error of the system call that failed.
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
            deletions: u64::MAX,
        };
        ioctl(&file, IOCTL_OPEN_APP, &mut argument).context("open the app")?;
        let length = argument.length as usize;
        let pages = mapping::file_at(&file, argument.base, length, argument.pages_offset)
            .context("map the pages")?;
        ensure!(
            pages.as_ptr() as u64 == argument.base,
            "the pages are mapped elsewhere"
        );
        let length = argument.locks_length as usize;
        let locks = mapping::part_of_file(&file, length, argument.locks_offset)
            .context("map the lock words")?;
        Ok(Self {
            file,
            base: argument.base,
            length: argument.length as usize,
            locks: locks.cast(),
        })
    }

    /// Opens or creates a domain with a first extent of `pages` pages; returns it and the address of its first page.
    ///
    /// # Errors
    ///
    /// The driver's error.
    pub fn domain(&self, key: &str, pages: u32) -> Result<(Domain, *mut u8)> {
        let mut argument = IoctlOpenDomain {
            key: padded::<KEY_MAX>(key),
            key_length: key.len() as u32,
            domain: 0,
            extents: 0,
            flags: 0,
            pages,
            reserved: 0,
            deletions: 0,
        };
        ioctl(&self.file, IOCTL_OPEN_DOMAIN, &mut argument).context("open the domain")?;
        let domain = Domain {
            number: argument.domain,
        };
        let extent = self.extent(domain, 0, pages).context("the first extent")?;
        Ok((domain, self.address(extent.page)))
    }

    /// Finds or creates an extent.
    ///
    /// # Errors
    ///
    /// The driver's error.
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

    /// Calls `fadvise64` with any arguments. Returns the error's number.
    pub fn advise(&self, offset: u64, length: u64, advice: i32) -> Option<i32> {
        let error = advise(&self.file, offset, length, advice).err()?;
        error.raw_os_error()
    }

    /// Address of a page.
    pub fn address(&self, page: u32) -> *mut u8 {
        (self.base + u64::from(page) * u64::from(PAGE_SIZE)) as *mut u8
    }

    /// Has the kernel refuse to move the mapping of all pages, which it copies before it asks the driver.
    ///
    /// # Errors
    ///
    /// When it is not refused.
    pub fn try_to_move(&self) -> Result<()> {
        /// Nothing else is mapped there.
        const FREE: *mut libc::c_void = std::ptr::without_provenance_mut(0x6000_0000_0000);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let (base, length) = (self.base as *mut libc::c_void, self.length);
        // SAFETY: the call is refused; otherwise the test fails.
        let moved = unsafe { libc::mremap(base, length, length, flags, FREE) };
        ensure!(moved == libc::MAP_FAILED, "the mapping was moved");
        Ok(())
    }

    /// Registers the calling thread.
    ///
    /// # Errors
    ///
    /// The driver's error.
    pub fn thread(&self) -> Result<Thread<'_>> {
        let mut argument = IoctlThread::default();
        ioctl(&self.file, IOCTL_THREAD, &mut argument).context("register the thread")?;
        let length = PAGE_SIZE as usize;
        let control = mapping::part_of_file(&self.file, length, argument.control_offset)
            .context("map the control page")?;
        let written = mapping::read_only_part_of_file(&self.file, length, argument.written_offset)
            .context("map the list of written pages")?;
        Ok(Thread::new(
            self,
            control.cast(),
            written.cast(),
            argument.tag_first,
        ))
    }

    /// Waits until everything committed is sealed.
    ///
    /// # Errors
    ///
    /// The driver's error.
    pub fn flush(&self) -> io::Result<()> {
        ioctl::<()>(&self.file, IOCTL_FLUSH, &mut ())
    }

    /// The driver's counters.
    ///
    /// # Errors
    ///
    /// The driver's error.
    pub fn info(&self) -> io::Result<IoctlInfo> {
        let mut info = IoctlInfo::default();
        ioctl(&self.file, IOCTL_INFO, &mut info)?;
        Ok(info)
    }

    /// Waits until everything committed is sealed, everything dropped is reported, and so every frame of the pool is free but
    /// those of resident pages, which other processes may have. No request may be in flight.
    ///
    /// # Errors
    ///
    /// When frames stay in use, and the driver's error.
    pub fn drain(&self) -> Result<()> {
        self.flush()?;
        let start = Instant::now();
        loop {
            let info = self.info()?;
            if info.pool_free + info.resident == info.pool_frames {
                return Ok(());
            }
            ensure!(
                start.elapsed() < EVENT_LIMIT,
                "frames of the pool stay in use: {info:?}"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Gives up a suspended request.
    ///
    /// # Errors
    ///
    /// The driver's error.
    pub fn abandon(&self, tag: u64) -> io::Result<()> {
        ioctl(&self.file, IOCTL_ABANDON, &mut IoctlTag { tag })
    }

    /// The lock word of a domain.
    pub fn lock_word(&self, domain: Domain) -> &AtomicU64 {
        // SAFETY: the mapping has a word for every possible domain and lasts until the process ends.
        unsafe { &*self.locks.as_ptr().add(domain.number as usize) }
    }
}
