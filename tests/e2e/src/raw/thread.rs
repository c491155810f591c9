//! A registered thread: the steps of a request one by one.

use std::cell::Cell;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use anyhow::{Result, ensure};
use vmsrs_protocol::NONE;
use vmsrs_protocol::ioctl::{
    IOCTL_DELETE, IOCTL_DISCARD, IOCTL_FAIL, IOCTL_LOCK_WAIT, IOCTL_LOCK_WAKE, IOCTL_SUSPEND,
    IoctlDelete, IoctlFail, IoctlLock, IoctlSuspend, IoctlTag,
};
use vmsrs_protocol::shared::{LOCK_TAG, LOCK_WAITERS, ThreadControl, WrittenPages};

use super::app::{App, Domain};
use super::ioctl::{commit, ioctl};
use super::memory::poke;

/// The calling thread's registration.
pub struct Thread<'a> {
    app: &'a App,
    control: NonNull<ThreadControl>,
    written: NonNull<WrittenPages>,
    next_tag: Cell<u64>,
}

impl<'a> Thread<'a> {
    pub(super) fn new(
        app: &'a App,
        control: NonNull<ThreadControl>,
        written: NonNull<WrittenPages>,
        tag_first: u64,
    ) -> Self {
        Self {
            app,
            control,
            written,
            next_tag: Cell::new(tag_first),
        }
    }

    /// One request: stores `value` at `address`, which lies in `domain`, and commits with these flags.
    ///
    /// # Errors
    ///
    /// When the domain is held by another request, or the commit fails.
    pub(crate) fn commit_byte(
        &self,
        domain: Domain,
        address: *mut u8,
        value: u8,
        flags: u32,
    ) -> Result<()> {
        let tag = self.begin(&[domain])?;
        // SAFETY: the address lies in the domain, which the request holds.
        unsafe { poke(address, value) };
        self.commit(tag, flags)?;
        Ok(self.end()?)
    }

    /// The thread's control block, mapped until the process ends.
    pub fn control(&self) -> *mut ThreadControl {
        self.control.as_ptr()
    }

    /// Starts a request that holds these domains, which must be free.
    ///
    /// # Errors
    ///
    /// When another request holds one of them.
    pub fn begin(&self, domains: &[Domain]) -> Result<u64> {
        let tag = self.next_tag.get();
        self.next_tag.set(tag + 1);
        // SAFETY: the control page belongs to this thread and stays mapped until the process ends; of these fields the
        // driver writes none.
        unsafe {
            std::ptr::write_volatile(&raw mut (*self.control()).tag, tag);
        }
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

    /// The thread's list of written pages, mapped read-only until the process ends.
    pub fn written(&self) -> *mut WrittenPages {
        self.written.as_ptr()
    }

    /// The pages that the driver lists as written by this request, or were when it was the last to write.
    pub fn written_pages(&self) -> Vec<u32> {
        // SAFETY: mapped, and only changed in writes of this thread, which does not write meanwhile.
        let list = unsafe { std::ptr::read_volatile(self.written()) };
        // SAFETY: as in `begin`.
        let tag = unsafe { std::ptr::read_volatile(&raw const (*self.control()).tag) };
        let count = if list.tag == tag { list.count } else { 0 };
        list.pages[..count as usize].to_vec()
    }

    /// Commits all domains of the request.
    ///
    /// # Errors
    ///
    /// The driver's error.
    pub fn commit(&self, tag: u64, flags: u32) -> io::Result<()> {
        commit(&self.app.file, tag, NONE, flags)
    }

    /// Commits one domain of the request.
    ///
    /// # Errors
    ///
    /// The driver's error.
    pub fn commit_domain(&self, tag: u64, domain: Domain) -> io::Result<()> {
        commit(&self.app.file, tag, domain.number, 0)
    }

    /// Waits for a domain's lock and takes it for the request.
    ///
    /// # Errors
    ///
    /// The driver's error.
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
    /// The driver's error.
    pub fn discard(&self, tag: u64) -> io::Result<()> {
        ioctl(&self.app.file, IOCTL_DISCARD, &mut IoctlTag { tag })
    }

    /// Deletes a domain that the request holds.
    ///
    /// # Errors
    ///
    /// The driver's error.
    pub fn delete(&self, tag: u64, domain: Domain) -> io::Result<()> {
        let mut argument = IoctlDelete {
            tag,
            domain: domain.number,
            reserved: 0,
        };
        ioctl(&self.app.file, IOCTL_DELETE, &mut argument)
    }

    /// Suspends the request. The thread stays attached to it until [`Thread::detach`].
    ///
    /// # Errors
    ///
    /// The driver's error.
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
    /// The driver's error.
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

    /// Releases the domains that the thread holds and ends the request.
    ///
    /// # Errors
    ///
    /// The driver's error when waiters have to be woken.
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
        self.detach();
        Ok(())
    }

    /// Detaches the thread from the request and releases nothing.
    pub fn detach(&self) {
        // SAFETY: as in `begin`.
        unsafe {
            std::ptr::write_volatile(&raw mut (*self.control()).tag, 0);
            std::ptr::write_volatile(&raw mut (*self.control()).held_count, 0);
        }
    }
}
