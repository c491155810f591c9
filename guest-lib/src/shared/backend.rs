//! What the library needs from the backend, which may keep versions of pages.

use crate::os::usage::Usage;
use crate::os::view::View;
use crate::shared::hot::Hot;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use vmsrs_protocol::control::Extent;
use vmsrs_protocol::ioctl::{IoctlDomainInfo, IoctlFail, IoctlInfo};
use vmsrs_protocol::shared::{ThreadControl, WrittenPages};

/// A thread as the backend knows it.
#[derive(Debug)]
pub(crate) struct Registration {
    /// Its control block; stays until [`Backend::unmap`].
    pub(crate) control: NonNull<ThreadControl>,
    /// The pages that its requests write; stays as long. Empty where no versions are kept.
    pub(crate) written: NonNull<WrittenPages>,
    /// Tags that it may use.
    pub(crate) tags: Tags,
}

/// Consecutive tags.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tags {
    pub(crate) next: u64,
    pub(crate) end: u64,
}

/// A domain as the backend has found or made it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FoundDomain {
    pub(crate) number: u32,
    /// [`vmsrs_protocol::control::DOMAIN_MIRROR`], [`vmsrs_protocol::control::DOMAIN_DAMAGED`].
    pub(crate) flags: u32,
    /// Number of the app's last deletion when it was found.
    pub(crate) deletions: u64,
}

/// One opened app. Every method may be called by every thread; `errno`s are those of
/// [`vmsrs_protocol::ioctl`].
pub(crate) trait Backend: Send + Sync + std::fmt::Debug {
    /// Whether versions are kept.
    fn protects(&self) -> bool;
    /// The app's number.
    fn number(&self) -> u32;
    /// The addresses of its pages.
    fn addresses(&self) -> Range<u64>;
    /// The word of a domain's lock.
    fn lock_word(&self, domain: u32) -> &AtomicU64;
    /// The list of hot domains.
    fn hot(&self) -> Hot {
        Hot::none()
    }
    /// Has a domain that the request holds not be hot: what the request has written there becomes drafts.
    fn cool(&self, _tag: u64, _domain: u32) -> io::Result<()> {
        Ok(())
    }
    /// Counts what the process has open. `None` where the kernel does not tell.
    fn usage(&self) -> Option<Usage> {
        Usage::from_proc()
    }
    /// Finds or creates a domain, with a mirror if `flags` has
    /// [`vmsrs_protocol::control::DOMAIN_MIRROR`].
    fn open_domain(&self, key: &[u8], flags: u32) -> io::Result<FoundDomain>;
    /// Deletes a domain that the request holds and has not written to. Its lock word is
    /// [`vmsrs_protocol::shared::LOCK_DELETED`] from then on.
    fn delete(&self, tag: u64, domain: u32) -> io::Result<()>;
    /// Says that the process has noted the deletions up to number `after`, and lists the next ones in `domains`. Returns how many
    /// these are, and the number of the last one, which is that of the last of all if there is room left.
    fn deleted(&self, after: u64, domains: &mut [u32]) -> io::Result<(usize, u64)>;
    /// Whether a domain is deleted whose lock says so, which may be a stray write.
    fn is_deleted(&self, _domain: u32) -> bool {
        true
    }
    /// Counts the pages of a domain.
    fn domain_info(&self, domain: u32) -> io::Result<IoctlDomainInfo>;
    /// Keeps bytes of a domain readable as they are committed now, whatever becomes of the domain. Returns a view of them.
    fn lease(&self, domain: u32, address: u64, length: usize) -> io::Result<View>;
    /// Finds or creates an extent.
    fn extent(&self, domain: u32, index: u32, pages: u32) -> io::Result<Extent>;
    /// Registers the calling thread, to be interrupted by `signal`. Its drafts may have the protection keys that have a
    /// bit in `keys`.
    fn register(&self, signal: i32, keys: u32) -> io::Result<Registration>;
    /// Unregisters the calling thread, and fails the request that it works for, if any. Its control block and
    /// its list of written pages stay mapped until [`Backend::unmap`].
    fn unregister(&self, control: NonNull<ThreadControl>);
    /// Unmaps what [`Backend::register`] has given an unregistered thread.
    fn unmap(&self, control: NonNull<ThreadControl>, written: NonNull<WrittenPages>);
    /// More tags.
    fn tags(&self) -> io::Result<Tags>;
    /// Commits one domain, or all with [`vmsrs_protocol::NONE`]. `flags` are those of
    /// [`vmsrs_protocol::ioctl::ADVICE_COMMIT`].
    fn commit(&self, tag: u64, domain: u32, flags: u32) -> io::Result<()>;
    /// Discards, releases the locks of `held`, reports.
    fn fail(&self, report: &mut IoctlFail, held: &[u32]) -> io::Result<()>;
    /// Discards; locks stay.
    fn discard(&self, tag: u64) -> io::Result<()>;
    /// Lists pages of a domain that the request has drafts of, in `pages`, without the first `skip`.
    /// Returns how many; none where no versions are kept.
    fn drafts(&self, tag: u64, domain: u32, skip: usize, pages: &mut [u32]) -> io::Result<usize>;
    /// Suspends the calling thread's request, with the domains that its control block lists.
    fn suspend(&self, tag: u64, deadline_ns: u64) -> io::Result<()>;
    /// Resumes a suspended request; the calling thread has its tag.
    fn resume(&self, tag: u64) -> io::Result<()>;
    /// Abandons a suspended request: discards, then releases the locks of `held`.
    fn abandon(&self, tag: u64, held: &[u32]) -> io::Result<()>;
    /// Waits for a lock and takes it. `is_pending` tells whether an interrupt of the calling thread has
    /// come before the sleep that it would have ended.
    fn lock_wait(
        &self,
        tag: u64,
        domain: u32,
        milliseconds: u32,
        is_pending: &dyn Fn() -> bool,
    ) -> io::Result<()>;
    /// Wakes the threads that wait for a lock.
    fn lock_wake(&self, domain: u32) -> io::Result<()>;
    /// Waits until everything committed is sealed.
    fn flush(&self) -> io::Result<()>;
    /// The state.
    fn info(&self) -> io::Result<IoctlInfo>;
    /// Makes the app usable in the child of a fork; async-signal-safe. The error names what failed.
    fn after_fork(&self) -> Result<(), &'static str>;
}
