//! The app behind the driver's character device.

mod calls;
mod file;

use crate::error::Error;
use crate::os::sanitizer;
use crate::os::usage::{Usage, without_own};
use crate::os::view::View;
use crate::shared::backend::{Backend, FoundDomain, Registration, Tags};
use crate::shared::descriptor::Descriptor;
use crate::shared::hot::Hot;
use crate::shared::pkru;
use calls::TRIES;
use file::{ALL_NOTED, READ_WRITE, can_commit, commit, is_of_app, map, open_app, open_file};
use std::ffi::CString;
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use vmsrs_protocol::control::Extent;
use vmsrs_protocol::ioctl::{
    COMMIT_SEAL, IOCTL_ABANDON, IOCTL_COOL, IOCTL_DELETE, IOCTL_DELETED, IOCTL_DISCARD,
    IOCTL_DOMAIN_INFO, IOCTL_DRAFTS, IOCTL_EXTENT, IOCTL_FAIL, IOCTL_FLUSH, IOCTL_INFO,
    IOCTL_LEASE, IOCTL_LOCK_WAIT, IOCTL_LOCK_WAKE, IOCTL_OPEN_DOMAIN, IOCTL_RESUME, IOCTL_SUSPEND,
    IOCTL_TAGS, IOCTL_THREAD, IOCTL_THREAD_EXIT, IOCTL_USAGE, IoctlCool, IoctlDelete, IoctlDeleted,
    IoctlDomainInfo, IoctlDrafts, IoctlExtent, IoctlFail, IoctlInfo, IoctlLease, IoctlLock,
    IoctlOpenApp, IoctlOpenDomain, IoctlSuspend, IoctlTag, IoctlTags, IoctlThread, IoctlUsage,
};
use vmsrs_protocol::shared::{ThreadControl, WrittenPages};
use vmsrs_protocol::{EXTENT_UNIT_PAGES, KEY_MAX, MAX_DOMAINS, NAME_MAX, PAGE_SIZE};

/// How opening the device went.
#[derive(Debug)]
pub(crate) enum Opened {
    /// It is there, and the app is open.
    App(Box<Device>),
    /// There is no device.
    Absent,
}

/// An app of the driver.
#[derive(Debug)]
pub(crate) struct Device {
    path: CString,
    name: [u8; NAME_MAX],
    descriptor: Descriptor,
    app: IoctlOpenApp,
    /// Number of the last deletion of a domain that the process has noted.
    noted: AtomicU64,
    locks: NonNull<AtomicU64>,
    hot: Hot,
}

// SAFETY: the lock words are atomics that live as long as the process; the driver guards the rest.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// Opens the app with that name (1 to 64 bytes) on the device at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when the device is there but refuses, [`Error::Map`] when the app's
    /// addresses are taken, [`Error::Sanitizer`].
    pub(crate) fn open(path: &Path, name: &[u8]) -> Result<Opened, Error> {
        let refused = |source| Error::Device {
            path: path.display().to_string(),
            source,
        };
        let c_path = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| refused(io::ErrorKind::InvalidInput.into()))?;
        let fd = match open_file(&c_path) {
            Ok(fd) => fd,
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::ENXIO | libc::ENODEV)
                ) =>
            {
                return Ok(Opened::Absent);
            }
            Err(error) => return Err(refused(error)),
        };
        let close = || {
            // SAFETY: opened above, and nobody else has it.
            unsafe { libc::close(fd) };
        };
        let mut padded = [0; NAME_MAX];
        padded[..name.len()].copy_from_slice(name);
        if let Some(name) = sanitizer::with_fixed_addresses() {
            close();
            return Err(Error::Sanitizer { name });
        }
        let app = open_app(fd, &padded, ALL_NOTED)
            .and_then(|app| can_commit(fd).map(|()| app))
            .map_err(|error| {
                close();
                refused(error)
            })?;
        let pages = map(
            fd,
            app.base as *mut u8,
            app.length,
            READ_WRITE,
            app.pages_offset,
        )
        .map_err(|source| {
            close();
            Error::Map {
                address: app.base,
                source,
            }
        })?;
        let locks = map(
            fd,
            std::ptr::null_mut(),
            app.locks_length,
            READ_WRITE,
            app.locks_offset,
        );
        let locks = locks.map_err(|error| {
            // SAFETY: mapped above, and nobody knows it yet.
            unsafe { libc::munmap(pages.as_ptr().cast(), app.length as usize) };
            close();
            refused(error)
        })?;
        pkru::install();
        // Everything works without.
        let hot = Hot::map(fd).unwrap_or(Hot::none());
        let descriptor = Descriptor::new(app.app, fd, is_of_app).map_err(|error| {
            // SAFETY: mapped above, and nobody knows them yet.
            unsafe {
                libc::munmap(pages.as_ptr().cast(), app.length as usize);
                libc::munmap(locks.as_ptr().cast(), app.locks_length as usize);
            }
            close();
            refused(error)
        })?;
        Ok(Opened::App(Box::new(Self {
            path: c_path,
            name: padded,
            descriptor,
            noted: AtomicU64::new(app.deletions),
            app,
            locks: locks.cast(),
            hot,
        })))
    }

    /// Registers the calling thread. After an error it is not registered.
    fn register_once(&self, signal: i32, keys: u32) -> io::Result<Registration> {
        let mut argument = IoctlThread {
            signal: signal as u32,
            keys,
            ..IoctlThread::default()
        };
        // SAFETY: the call's argument.
        unsafe { self.call_checked(IOCTL_THREAD, &raw mut argument) }?;
        let (control, written) = self.map_thread(&argument).inspect_err(|_| {
            // SAFETY: a call without an argument.
            let _ = unsafe { self.call_checked::<u8>(IOCTL_THREAD_EXIT, std::ptr::null_mut()) };
        })?;
        Ok(Registration {
            control: control.cast(),
            written: written.cast(),
            tags: Tags {
                next: argument.tag_first,
                end: argument.tag_first.saturating_add(argument.tag_count),
            },
        })
    }

    /// Maps the control block and the list of written pages of a thread.
    ///
    /// # Errors
    ///
    /// That of `mmap`, of another file perhaps; `EBADF` if another file may have been mapped.
    fn map_thread(&self, thread: &IoctlThread) -> io::Result<(NonNull<u8>, NonNull<u8>)> {
        let fd = self.fd()?;
        let page = |protection, offset| {
            map(
                fd,
                std::ptr::null_mut(),
                PAGE_SIZE.into(),
                protection,
                offset,
            )
        };
        let unmap = |page: NonNull<u8>| {
            // SAFETY: mapped here, and nobody knows it yet.
            unsafe { libc::munmap(page.as_ptr().cast(), PAGE_SIZE as usize) };
        };
        let control = page(READ_WRITE, thread.control_offset)?;
        let written =
            page(libc::PROT_READ, thread.written_offset).inspect_err(|_| unmap(control))?;
        if !self.descriptor.is_still(fd) {
            unmap(control);
            unmap(written);
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        Ok((control, written))
    }

    /// Opens the app on another descriptor and maps it where it was; async-signal-safe.
    fn map_again(&self, fd: RawFd) -> Result<(), &'static str> {
        let noted = self.noted.load(Ordering::SeqCst);
        let app = open_app(fd, &self.name, noted).map_err(|_| "the device refuses the app")?;
        if app.base != self.app.base || app.locks_length != self.app.locks_length {
            return Err("the app has moved");
        }
        let pages = map(
            fd,
            app.base as *mut u8,
            app.length,
            READ_WRITE,
            app.pages_offset,
        )
        .map_err(|_| "the app's pages cannot be mapped")?;
        let locks = self.locks.as_ptr().cast();
        map(fd, locks, app.locks_length, READ_WRITE, app.locks_offset).map_err(|_| {
            // SAFETY: mapped above, and nobody has used it yet.
            unsafe { libc::munmap(pages.as_ptr().cast(), app.length as usize) };
            "the app's locks cannot be mapped"
        })?;
        self.hot
            .map_again(fd)
            .map_err(|_| "the list of hot domains cannot be mapped")?;
        Ok(())
    }
}

impl Backend for Device {
    fn protects(&self) -> bool {
        true
    }

    fn number(&self) -> u32 {
        self.app.app
    }

    fn addresses(&self) -> Range<u64> {
        self.app.base..self.app.base.saturating_add(self.app.length)
    }

    fn lock_word(&self, domain: u32) -> &AtomicU64 {
        assert!(u64::from(domain) < self.app.locks_length / 8);
        // SAFETY: inside the mapping by the check; it stays forever.
        unsafe { self.locks.add(domain as usize).as_ref() }
    }

    fn hot(&self) -> Hot {
        self.hot
    }

    fn cool(&self, tag: u64, domain: u32) -> io::Result<()> {
        let mut argument = IoctlCool {
            tag,
            domain,
            reserved: 0,
        };
        // SAFETY: the call's argument.
        unsafe { self.call(IOCTL_COOL, &raw mut argument) }
    }

    fn usage(&self) -> Option<Usage> {
        let mut answer = IoctlUsage::default();
        // SAFETY: the call's argument.
        unsafe { self.call(IOCTL_USAGE, &raw mut answer) }.ok()?;
        Some(Usage {
            descriptors: answer.descriptors,
            memory: without_own(answer.memory),
            threads: answer.threads,
        })
    }

    fn open_domain(&self, key: &[u8], flags: u32) -> io::Result<FoundDomain> {
        let mut argument = IoctlOpenDomain {
            key: [0; KEY_MAX],
            key_length: key.len() as u32,
            domain: 0,
            extents: 0,
            flags,
            pages: EXTENT_UNIT_PAGES,
            reserved: 0,
            deletions: 0,
        };
        argument.key[..key.len()].copy_from_slice(key);
        // SAFETY: the call's argument.
        unsafe { self.call_checked(IOCTL_OPEN_DOMAIN, &raw mut argument) }?;
        if argument.domain >= MAX_DOMAINS {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(FoundDomain {
            number: argument.domain,
            flags: argument.flags,
            deletions: argument.deletions,
        })
    }

    fn delete(&self, tag: u64, domain: u32) -> io::Result<()> {
        let mut argument = IoctlDelete {
            tag,
            domain,
            reserved: 0,
        };
        // SAFETY: the call's argument.
        unsafe { self.call(IOCTL_DELETE, &raw mut argument) }
    }

    fn deleted(&self, after: u64, domains: &mut [u32]) -> io::Result<(usize, u64)> {
        self.noted.fetch_max(after, Ordering::SeqCst);
        let mut argument = IoctlDeleted {
            after,
            domains: domains.as_mut_ptr() as u64,
            last: after,
            capacity: domains.len() as u32,
            count: 0,
        };
        // SAFETY: the call's argument; `domains` has room for `capacity` numbers.
        unsafe { self.call_checked(IOCTL_DELETED, &raw mut argument) }?;
        Ok(((argument.count as usize).min(domains.len()), argument.last))
    }

    fn is_deleted(&self, domain: u32) -> bool {
        let counted = self.domain_info(domain);
        counted.is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
    }

    fn domain_info(&self, domain: u32) -> io::Result<IoctlDomainInfo> {
        let mut argument = IoctlDomainInfo {
            domain,
            ..IoctlDomainInfo::default()
        };
        // SAFETY: the call's argument.
        unsafe { self.call_checked(IOCTL_DOMAIN_INFO, &raw mut argument) }?;
        Ok(argument)
    }

    fn lease(&self, domain: u32, address: u64, length: usize) -> io::Result<View> {
        let mut argument = IoctlLease {
            address,
            length: length as u64,
            domain,
            reserved: 0,
        };
        // SAFETY: the call's argument. Another app's file knows no page at that address.
        unsafe { self.call(IOCTL_LEASE, &raw mut argument) }?;
        let first = NonNull::new(argument.address as *mut u8).ok_or(io::ErrorKind::InvalidData)?;
        // SAFETY: the driver has made the mapping for the caller, of the pages that they are in, and it cannot be written.
        unsafe { View::new(first, length) }
    }

    fn extent(&self, domain: u32, index: u32, pages: u32) -> io::Result<Extent> {
        let mut argument = IoctlExtent {
            domain,
            index,
            pages,
            page: 0,
        };
        // SAFETY: the call's argument.
        unsafe { self.call_checked(IOCTL_EXTENT, &raw mut argument) }?;
        Ok(Extent {
            page: argument.page,
            pages: argument.pages,
        })
    }

    fn register(&self, signal: i32, keys: u32) -> io::Result<Registration> {
        let mut outcome = self.register_once(signal, keys);
        for _ in 1..TRIES {
            // The error of a mapping does not tell whether it was one of this file.
            if outcome.is_ok() {
                break;
            }
            outcome = self.register_once(signal, keys);
        }
        outcome
    }

    fn unregister(&self, _: NonNull<ThreadControl>) {
        // SAFETY: a call without an argument; an error means that the driver forgot us already.
        let _ = unsafe { self.call_checked::<u8>(IOCTL_THREAD_EXIT, std::ptr::null_mut()) };
    }

    fn unmap(&self, control: NonNull<ThreadControl>, written: NonNull<WrittenPages>) {
        for page in [control.as_ptr().cast(), written.as_ptr().cast()] {
            // SAFETY: mapped by register(), and its thread ends.
            unsafe { libc::munmap(page, PAGE_SIZE as usize) };
        }
    }

    fn tags(&self) -> io::Result<Tags> {
        let mut argument = IoctlTags::default();
        // SAFETY: the call's argument.
        unsafe { self.call(IOCTL_TAGS, &raw mut argument) }?;
        Ok(Tags {
            next: argument.tag_first,
            end: argument.tag_first.saturating_add(argument.tag_count),
        })
    }

    fn commit(&self, tag: u64, domain: u32, flags: u32) -> io::Result<()> {
        match self.call_by(&|fd| commit(fd, tag, domain, flags)) {
            // The commit is done when the wait for its seal is interrupted.
            Err(error) if flags & COMMIT_SEAL != 0 && error.raw_os_error() == Some(libc::EINTR) => {
                self.flush()
            }
            outcome => outcome,
        }
    }

    fn fail(&self, report: &mut IoctlFail, _held: &[u32]) -> io::Result<()> {
        // SAFETY: the call's argument.
        unsafe { self.call(IOCTL_FAIL, std::ptr::from_mut(report)) }
    }

    fn discard(&self, tag: u64) -> io::Result<()> {
        let mut argument = IoctlTag { tag };
        // SAFETY: the call's argument.
        unsafe { self.call(IOCTL_DISCARD, &raw mut argument) }
    }

    fn drafts(&self, tag: u64, domain: u32, skip: usize, pages: &mut [u32]) -> io::Result<usize> {
        let mut argument = IoctlDrafts {
            tag,
            pages: pages.as_mut_ptr() as u64,
            domain,
            skip: skip as u32,
            capacity: pages.len() as u32,
            count: 0,
        };
        // SAFETY: the call's argument; `pages` has room for `capacity` numbers.
        unsafe { self.call(IOCTL_DRAFTS, &raw mut argument) }?;
        Ok((argument.count as usize).min(pages.len()))
    }

    fn suspend(&self, tag: u64, deadline_ns: u64) -> io::Result<()> {
        let mut argument = IoctlSuspend { tag, deadline_ns };
        // SAFETY: the call's argument.
        unsafe { self.call(IOCTL_SUSPEND, &raw mut argument) }
    }

    fn resume(&self, tag: u64) -> io::Result<()> {
        let mut argument = IoctlTag { tag };
        // SAFETY: the call's argument.
        unsafe { self.call(IOCTL_RESUME, &raw mut argument) }
    }

    fn abandon(&self, tag: u64, _held: &[u32]) -> io::Result<()> {
        let mut argument = IoctlTag { tag };
        // SAFETY: the call's argument.
        unsafe { self.call(IOCTL_ABANDON, &raw mut argument) }
    }

    fn lock_wait(
        &self,
        tag: u64,
        domain: u32,
        milliseconds: u32,
        _: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        let mut argument = IoctlLock {
            tag,
            domain,
            timeout_ms: milliseconds,
        };
        // SAFETY: the call's argument.
        unsafe { self.call(IOCTL_LOCK_WAIT, &raw mut argument) }
    }

    fn lock_wake(&self, domain: u32) -> io::Result<()> {
        let mut argument = IoctlLock {
            tag: 0,
            domain,
            timeout_ms: 1,
        };
        // SAFETY: the call's argument.
        unsafe { self.call(IOCTL_LOCK_WAKE, &raw mut argument) }
    }

    fn flush(&self) -> io::Result<()> {
        loop {
            // SAFETY: a call without an argument.
            match unsafe { self.call_checked::<u8>(IOCTL_FLUSH, std::ptr::null_mut()) } {
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                outcome => return outcome,
            }
        }
    }

    fn info(&self) -> io::Result<IoctlInfo> {
        let mut info = IoctlInfo::default();
        // SAFETY: the call's argument.
        unsafe { self.call(IOCTL_INFO, &raw mut info) }?;
        Ok(info)
    }

    /// The driver's mappings are not copied to a child and its file belongs to the parent: the
    /// child opens its own and maps at the same addresses.
    fn after_fork(&self) -> Result<(), &'static str> {
        let fd = open_file(&self.path).map_err(|_| "the device cannot be opened")?;
        if let Err(what) = self.map_again(fd) {
            // SAFETY: opened above.
            unsafe { libc::close(fd) };
            return Err(what);
        }
        self.descriptor.replace_all(fd);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmsrs_protocol::MAX_APPS;

    /// Descriptors of this process that are open on a file.
    fn open_on(path: &Path) -> usize {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
        descriptors
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter(|target| target == path)
            .count()
    }

    #[test]
    fn a_refused_after_fork_leaves_no_descriptor_open() {
        // A plain file knows none of the driver's calls.
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = CString::new(file.path().as_os_str().as_bytes()).unwrap();
        let mut locks = AtomicU64::new(0);
        let device = Device {
            descriptor: Descriptor::new(MAX_APPS - 4, open_file(&path).unwrap(), |_, _| true)
                .unwrap(),
            path,
            name: [0; NAME_MAX],
            app: bytemuck::Zeroable::zeroed(),
            noted: AtomicU64::new(0),
            locks: NonNull::from(&mut locks),
            hot: Hot::none(),
        };
        let before = open_on(file.path());
        assert_eq!(device.after_fork(), Err("the device refuses the app"));
        assert_eq!(open_on(file.path()), before);
    }
}
