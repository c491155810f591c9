//! An app without a device whose backend does what a test says, where that says anything.

use crate::os::view::View;
use crate::shared::backend::{Backend, FoundDomain, Registration, Tags};
use crate::shared::unprotected::Unprotected;
use crate::state::domain::App;
use crate::thread;
use std::fmt;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use vmsrs_protocol::NONE;
use vmsrs_protocol::control::Extent;
use vmsrs_protocol::ioctl::{IoctlDomainInfo, IoctlFail, IoctlInfo};
use vmsrs_protocol::shared::{ThreadControl, WRITTEN_MAX, WrittenPages};

/// [`Backend::lock_wait`], with tag and domain; `None` for the wait itself.
type LockWait = dyn Fn(u64, u32) -> Option<io::Result<()>> + Send + Sync;

/// [`Backend::drafts`], with domain, pages to skip and room for pages.
type Drafts = dyn Fn(u32, usize, &mut [u32]) -> usize + Send + Sync;

/// [`Backend::deleted`].
type Deleted = dyn Fn(u64, &mut [u32]) -> io::Result<(usize, u64)> + Send + Sync;

/// What a test does instead.
pub(crate) struct Hooks {
    /// [`Backend::commit`], with tag and domain.
    pub(crate) commit: Box<dyn Fn(u64, u32) -> io::Result<()> + Send + Sync>,
    /// [`Backend::resume`], with the tag.
    pub(crate) resume: Box<dyn Fn(u64) -> io::Result<()> + Send + Sync>,
    /// Before [`Backend::abandon`], with the tag.
    pub(crate) abandon: Box<dyn Fn(u64) + Send + Sync>,
    /// [`Backend::protects`].
    pub(crate) protects: bool,
    /// [`Backend::drafts`], with the domain.
    pub(crate) drafts: Box<Drafts>,
    /// Instead of [`Backend::delete`], with tag and domain; `None` for the deletion itself.
    pub(crate) delete: Box<LockWait>,
    /// [`Backend::deleted`].
    pub(crate) deleted: Box<Deleted>,
    /// Number of the last deletion.
    pub(crate) deletions: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Before or instead of a wait for a lock.
    pub(crate) lock_wait: Box<LockWait>,
}

/// See the module's description.
pub(crate) struct MockBackend {
    inner: Unprotected,
    hooks: Hooks,
}

impl fmt::Debug for MockBackend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(formatter)
    }
}

impl MockBackend {
    /// An app under a name of its own.
    pub(crate) fn app(name: &str, set: impl FnOnce(&mut Hooks)) -> &'static App {
        let mut hooks = Hooks {
            commit: Box::new(|_, _| Ok(())),
            resume: Box::new(|_| Ok(())),
            abandon: Box::new(|_| ()),
            protects: false,
            drafts: Box::new(|_, _, _| 0),
            delete: Box::new(|_, _| None),
            deleted: Box::new(|after, _| Ok((0, after))),
            deletions: Box::new(|| 0),
            lock_wait: Box::new(|_, _| None),
        };
        set(&mut hooks);
        App::with_backend(name, |number| {
            let inner = Unprotected::open(number).unwrap();
            Box::new(Self { inner, hooks })
        })
    }
}

impl Backend for MockBackend {
    fn protects(&self) -> bool {
        self.hooks.protects
    }

    fn number(&self) -> u32 {
        self.inner.number()
    }

    fn addresses(&self) -> Range<u64> {
        self.inner.addresses()
    }

    fn lock_word(&self, domain: u32) -> &AtomicU64 {
        self.inner.lock_word(domain)
    }

    fn open_domain(&self, key: &[u8], flags: u32) -> io::Result<FoundDomain> {
        let found = self.inner.open_domain(key, flags)?;
        Ok(FoundDomain {
            deletions: (self.hooks.deletions)(),
            ..found
        })
    }

    fn delete(&self, tag: u64, domain: u32) -> io::Result<()> {
        (self.hooks.delete)(tag, domain).unwrap_or_else(|| self.inner.delete(tag, domain))
    }

    fn deleted(&self, after: u64, domains: &mut [u32]) -> io::Result<(usize, u64)> {
        (self.hooks.deleted)(after, domains)
    }

    fn domain_info(&self, domain: u32) -> io::Result<IoctlDomainInfo> {
        self.inner.domain_info(domain)
    }

    fn lease(&self, domain: u32, address: u64, length: usize) -> io::Result<View> {
        self.inner.lease(domain, address, length)
    }

    fn extent(&self, domain: u32, index: u32, pages: u32) -> io::Result<Extent> {
        self.inner.extent(domain, index, pages)
    }

    fn register(&self, signal: i32, keys: u32) -> io::Result<Registration> {
        self.inner.register(signal, keys)
    }

    fn unregister(&self, control: NonNull<ThreadControl>) {
        self.inner.unregister(control);
    }

    fn unmap(&self, control: NonNull<ThreadControl>, written: NonNull<WrittenPages>) {
        self.inner.unmap(control, written);
    }

    fn tags(&self) -> io::Result<Tags> {
        self.inner.tags()
    }

    fn commit(&self, tag: u64, domain: u32, _flags: u32) -> io::Result<()> {
        (self.hooks.commit)(tag, domain)?;
        if domain == NONE {
            list_written(&[]);
        }
        Ok(())
    }

    fn fail(&self, report: &mut IoctlFail, held: &[u32]) -> io::Result<()> {
        self.inner.fail(report, held)
    }

    fn discard(&self, tag: u64) -> io::Result<()> {
        self.inner.discard(tag)
    }

    fn drafts(&self, _tag: u64, domain: u32, skip: usize, pages: &mut [u32]) -> io::Result<usize> {
        Ok((self.hooks.drafts)(domain, skip, pages))
    }

    fn suspend(&self, tag: u64, deadline_ns: u64) -> io::Result<()> {
        self.inner.suspend(tag, deadline_ns)
    }

    fn resume(&self, tag: u64) -> io::Result<()> {
        (self.hooks.resume)(tag)
    }

    fn abandon(&self, tag: u64, held: &[u32]) -> io::Result<()> {
        (self.hooks.abandon)(tag);
        self.inner.abandon(tag, held)
    }

    fn lock_wait(
        &self,
        tag: u64,
        domain: u32,
        milliseconds: u32,
        is_pending: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        (self.hooks.lock_wait)(tag, domain)
            .unwrap_or_else(|| self.inner.lock_wait(tag, domain, milliseconds, is_pending))
    }

    fn lock_wake(&self, domain: u32) -> io::Result<()> {
        self.inner.lock_wake(domain)
    }

    fn flush(&self) -> io::Result<()> {
        self.inner.flush()
    }

    fn info(&self) -> io::Result<IoctlInfo> {
        self.inner.info()
    }

    fn after_fork(&self) -> Result<(), &'static str> {
        self.inner.after_fork()
    }
}

/// Lists pages as written by the calling thread's request, as the driver does.
pub(crate) fn list_written(pages: &[u32]) {
    let thread = thread::current().unwrap();
    let list = thread.written().list().as_ptr();
    // SAFETY: below the list's length.
    let place = |place: usize| unsafe { (&raw mut (*list).pages).cast::<u32>().add(place) };
    for (at, page) in pages.iter().take(WRITTEN_MAX).enumerate() {
        // SAFETY: the calling thread's list, in plain memory.
        unsafe { place(at).write_volatile(*page) };
    }
    // SAFETY: as above.
    unsafe {
        (&raw mut (*list).count).write_volatile(pages.len() as u32);
        (&raw mut (*list).tag).write_volatile(thread.tag());
    }
}
