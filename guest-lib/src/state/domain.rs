//! Apps and domains, as everything above the heap knows them.

use super::budget::{Allowed, Tally};
use super::deleted::Deletions;
use super::directory::{Directory, Entry};
use crate::error::Error;
use crate::heap::Heap;
use crate::heap::layout::{DomainHeader, FINGERPRINT, MAGIC};
use crate::os::clock;
use crate::shared::backend::{Backend, FoundDomain};
use crate::shared::hot::Hot;
use crate::shared::pkru;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use vmsrs_protocol::control::{DOMAIN_DAMAGED, DOMAIN_MIRROR, Extent};
use vmsrs_protocol::shared::{LOCK_DELETED, LOCK_TAG};
use vmsrs_protocol::{EXTENT_UNIT_PAGES, MAX_APPS, PAGE_SIZE};

/// An app, open in this process for as long as it lives.
#[derive(Debug)]
pub struct App {
    name: Vec<u8>,
    backend: Box<dyn Backend>,
    /// What the backend says, without asking it.
    protects: bool,
    /// Address of page 0.
    base: u64,
    domains: Directory<Domain>,
    deletions: Deletions<Domain>,
    invariant: Invariant,
    budget: Allowed,
}

/// All open apps by number, without a lock: the child of a fork walks them.
static BY_NUMBER: [AtomicPtr<App>; MAX_APPS as usize] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; MAX_APPS as usize];

impl App {
    /// An app with that name (not open yet), which lives as long as the process.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] when the backend's number is out of range, [`Error::System`] when there is no memory.
    pub(crate) fn new(name: &[u8], backend: Box<dyn Backend>) -> Result<&'static Self, Error> {
        let slot = BY_NUMBER
            .get(backend.number() as usize)
            .ok_or(Error::Argument("the app's number is out of range"))?;
        let app: &'static Self = Box::leak(Box::new(Self {
            name: name.to_vec(),
            protects: backend.protects(),
            base: backend.addresses().start,
            backend,
            domains: Directory::new()?,
            deletions: Deletions::new()?,
            invariant: Invariant::default(),
            budget: Allowed::default(),
        }));
        slot.store(std::ptr::from_ref(app).cast_mut(), Ordering::Release);
        Ok(app)
    }

    /// The domain with that key (1 to 64 bytes), opened if it is not open in this process. `flags` are
    /// those of [`Backend::open_domain`].
    pub(crate) fn find_domain(
        &'static self,
        key: &[u8],
        flags: u32,
    ) -> Result<&'static Domain, Error> {
        loop {
            if let Some(domain) = self.domains.find(key) {
                if !domain.is_gone() {
                    return Ok(domain);
                }
                self.forget_domain(domain);
            }
            let (domain, deletions) = match Domain::open(self, key, flags) {
                Ok(opened) => opened,
                // Another thread may have opened it meanwhile, and be writing its first pages.
                Err(error) => return self.domains.find(key).ok_or(error),
            };
            let domain = self.domains.insert(domain);
            if self.deletions.know(domain.number(), domain, deletions) {
                self.note_deletions(deletions);
                return Ok(domain);
            }
            // It may be one of those that were deleted since.
            self.forget_domain(domain);
        }
    }

    /// From here on nobody finds a domain that was deleted, and no request begins or enters it.
    pub(crate) fn forget_domain(&'static self, domain: &'static Domain) {
        domain.set_fate(Fate::Gone);
        self.deletions.alone(|| self.domains.remove(domain));
    }

    /// Notes the domains that were deleted up to that deletion, by other processes too. Their numbers can be others' afterwards.
    pub(crate) fn note_deletions(&'static self, last: u64) {
        let forget = |domain: &'static Domain| {
            domain.set_fate(Fate::Gone);
            self.domains.remove(domain);
        };
        self.deletions.note(&*self.backend, last, forget);
    }

    /// The same for all deletions so far.
    pub(crate) fn note_all_deletions(&'static self) {
        self.note_deletions(u64::MAX);
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    #[inline]
    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// Whether versions of pages are kept.
    #[inline]
    pub(crate) fn protects(&self) -> bool {
        self.protects
    }

    pub(crate) fn invariant(&self) -> &Invariant {
        &self.invariant
    }

    pub(crate) fn budget(&self) -> &Allowed {
        &self.budget
    }

    /// Address of page 0.
    #[inline]
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Whether an open app has pages among these addresses.
    pub(crate) fn any_in(addresses: &Range<u64>) -> bool {
        let has = |pages: Range<u64>| pages.start < addresses.end && pages.end > addresses.start;
        Self::all().any(|app| has(app.backend().addresses()))
    }

    /// All open apps.
    pub(crate) fn all() -> impl Iterator<Item = &'static Self> {
        BY_NUMBER.iter().filter_map(|slot| {
            // SAFETY: null, or an app that lives forever.
            unsafe { slot.load(Ordering::Acquire).as_ref() }
        })
    }
}

/// What becomes of a domain.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Fate {
    There,
    /// The thread that holds it is about to delete it.
    Doomed,
    /// It was deleted.
    Gone,
}

/// A domain, open in this process for as long as it lives.
///
/// All processes that open the app find the domain at the same addresses, so pointers inside it
/// stay valid.
pub struct Domain {
    app: &'static App,
    number: u32,
    lock: &'static AtomicU64,
    /// See [`Domain::may_be_hot`].
    hot: &'static AtomicU32,
    first: Extent,
    header: NonNull<DomainHeader>,
    /// See [`Domain::is_known`].
    known: AtomicBool,
    /// A [`Fate`].
    fate: AtomicU8,
    /// The host keeps second copies of its pages.
    mirrored: bool,
    invariant: Invariant,
    budget: Allowed,
    tally: Tally,
    key: Box<[u8]>,
    /// The next one in the directory.
    next: AtomicPtr<Domain>,
}

// SAFETY: the header's memory is guarded by the domain's lock; the rest never changes.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl fmt::Debug for Domain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Domain")
            .field("number", &self.number)
            .field("address", &self.header)
            .finish_non_exhaustive()
    }
}

impl Entry for Domain {
    fn key(&self) -> &[u8] {
        &self.key
    }

    fn next(&self) -> &AtomicPtr<Self> {
        &self.next
    }
}

impl Domain {
    /// Finds or creates the domain with that key (1 to 64 bytes). `flags` are those of
    /// [`Backend::open_domain`].
    fn open(app: &'static App, key: &[u8], flags: u32) -> Result<(Self, u64), Error> {
        let backend = app.backend();
        let FoundDomain {
            number,
            flags,
            deletions,
        } = backend
            .open_domain(key, flags)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ENOSPC) => Error::NoRoom,
                _ => Error::system("opening the domain")(error),
            })?;
        if flags & DOMAIN_DAMAGED != 0 {
            return Err(Error::Damaged { domain: number });
        }
        let first = backend
            .extent(number, 0, EXTENT_UNIT_PAGES)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ENOMEM | libc::ENOSPC) => Error::NoRoom,
                _ => Error::system("making the domain's first extent")(error),
            })?;
        let address = app.base() + u64::from(first.page) * u64::from(PAGE_SIZE);
        let header = NonNull::new(address as *mut DomainHeader)
            .ok_or(Error::Argument("the domain's address is null"))?;
        let domain = Self {
            app,
            number,
            // It stays where it is, also in the child of a fork.
            lock: backend.lock_word(number),
            hot: backend.hot().entry(number),
            first,
            header,
            known: AtomicBool::new(false),
            fate: AtomicU8::new(Fate::There as u8),
            mirrored: flags & DOMAIN_MIRROR != 0,
            invariant: Invariant::default(),
            budget: Allowed::default(),
            tally: Tally::default(),
            key: key.into(),
            next: AtomicPtr::new(std::ptr::null_mut()),
        };
        pkru::with_all(|| domain.layout())?;
        Ok((domain, deletions))
    }

    /// Whether a committed version of the domain had a heap that this library understands. All later ones have it.
    #[inline]
    pub(crate) fn is_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }

    /// Notes it: the calling request holds the domain and has written nothing.
    pub(crate) fn note_known(&self) {
        if self.app.protects() {
            self.known.store(true, Ordering::SeqCst);
            if self.tally.refused_for(|| 0) != 0 || !self.is(Fate::There) {
                self.known.store(false, Ordering::SeqCst);
            }
        }
    }

    /// Requests look at what becomes of the domain from here on, and refuse it unless it is there.
    pub(crate) fn set_fate(&self, fate: Fate) {
        self.fate.store(fate as u8, Ordering::SeqCst);
        self.known.store(false, Ordering::SeqCst);
    }

    fn is(&self, fate: Fate) -> bool {
        self.fate.load(Ordering::SeqCst) == fate as u8
    }

    /// Whether the domain was deleted. Its lock says so, which a stray write can reach, so the driver is asked then.
    pub(crate) fn is_gone(&self) -> bool {
        let is_marked = || self.holder() == LOCK_DELETED;
        self.is(Fate::Gone) || (is_marked() && self.app.backend().is_deleted(self.number))
    }

    /// Whether the domain has a mirror, as far as this process knows.
    pub(crate) fn is_mirrored(&self) -> bool {
        self.mirrored
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// How long the domain is refused for its failures.
    pub(crate) fn refused_for(&self) -> Duration {
        Duration::from_nanos(self.tally.refused_for(clock::now))
    }

    /// Refuses a deleted domain, one in quarantine, and one whose heap this library does not understand. Returns whether there is a heap:
    /// a new domain has none.
    pub(crate) fn check_layout(&self) -> Result<bool, Error> {
        if !self.is(Fate::There) {
            return Err(Error::Deleted);
        }
        match self.tally.refused_for(clock::now) {
            0 => self.layout(),
            left => Err(Error::Quarantined {
                milliseconds: left.div_ceil(1_000_000),
            }),
        }
    }

    fn layout(&self) -> Result<bool, Error> {
        let header = self.header.as_ptr();
        // SAFETY: the domain's first page is mapped; another process may write it meanwhile, hence
        // volatile. A new domain is all zero.
        let (magic, found) = unsafe {
            (
                (&raw const (*header).magic).read_volatile(),
                (&raw const (*header).fingerprint).read_volatile(),
            )
        };
        if magic == MAGIC && found != FINGERPRINT {
            return Err(Error::Layout {
                found,
                expected: FINGERPRINT,
            });
        }
        Ok(magic != 0)
    }

    /// The app.
    #[must_use]
    #[inline]
    pub fn app(&self) -> &'static App {
        self.app
    }

    /// The domain's number in its app, as the host's tools print it.
    #[must_use]
    #[inline]
    pub fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn invariant(&self) -> &Invariant {
        &self.invariant
    }

    pub(crate) fn budget(&self) -> &Allowed {
        &self.budget
    }

    /// The domain's budget, or the app's if it has none.
    fn allowed(&self) -> Option<&Allowed> {
        [&self.budget, &self.app.budget]
            .into_iter()
            .find(|budget| budget.is_set())
    }

    /// Counts a failed request; whether these are more than the budget allows.
    pub(crate) fn note_failure(&self) -> bool {
        let allowed = self.allowed();
        allowed.is_some_and(|allowed| self.tally.note(allowed, clock::now()))
    }

    /// Refuses the domain for as long as its budget says.
    pub(crate) fn quarantine(&self) {
        let pause = self.allowed().map_or(0, Allowed::pause);
        self.tally.refuse_until(clock::now().saturating_add(pause));
        // Requests look at it from here on.
        self.known.store(false, Ordering::SeqCst);
    }

    #[inline]
    pub(crate) fn lock_word(&self) -> &AtomicU64 {
        self.lock
    }

    /// The tag of the request that holds the domain, or 0.
    #[inline]
    pub(crate) fn holder(&self) -> u64 {
        self.lock_word().load(Ordering::Relaxed) & LOCK_TAG
    }

    /// False if the domain is not hot. From memory that only the driver writes.
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    pub(crate) fn may_be_hot(&self) -> bool {
        self.hot.load(Ordering::Relaxed) != 0
    }

    /// The list of hot domains.
    pub(crate) fn hot(&self) -> Hot {
        self.app.backend().hot()
    }

    pub(crate) fn first(&self) -> Extent {
        self.first
    }

    pub(crate) fn header(&self) -> *mut DomainHeader {
        self.header.as_ptr()
    }

    /// The heap; the calling thread's request holds the domain. `made`: the domain is known to have one.
    pub(crate) fn heap(&self, made: bool) -> Heap {
        let (base, backend) = (self.app.base(), self.app.backend());
        // SAFETY: open() got header and extent from the backend; callers hold the domain.
        unsafe { Heap::new(self.header, base, self.number, made, backend) }
    }

    /// A copy of the heap's bookkeeping.
    #[cfg(test)]
    pub(crate) fn bookkeeping(&self) -> Vec<u64> {
        let words = self.header.as_ptr().cast::<u64>();
        // SAFETY: the domain's first page is mapped and aligned; others may write it meanwhile.
        let word = |place| unsafe { words.add(place).read_volatile() };
        (0..size_of::<DomainHeader>() / size_of::<u64>())
            .map(word)
            .collect()
    }
}

// Invariants.

/// A check: its error says what does not hold.
pub(crate) type Check = dyn Fn(&'static Domain) -> Result<(), String> + Send + Sync;

/// The invariant of an app or a domain, registered or not. It stays as long as the process.
pub(crate) struct Invariant(AtomicPtr<Box<Check>>);

impl Default for Invariant {
    fn default() -> Self {
        Self(AtomicPtr::new(std::ptr::null_mut()))
    }
}

impl fmt::Debug for Invariant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.get().is_some() { "set" } else { "none" };
        formatter.write_str(state)
    }
}

impl Invariant {
    /// Registers the check.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] if there is one already.
    pub(crate) fn set(&self, check: Box<Check>) -> Result<(), Error> {
        let (none, check) = (std::ptr::null_mut(), Box::into_raw(Box::new(check)));
        let set = self
            .0
            .compare_exchange(none, check, Ordering::Release, Ordering::Relaxed);
        set.map(drop).map_err(|_| {
            // SAFETY: made above, and nobody else has it.
            drop(unsafe { Box::from_raw(check) });
            Error::Argument("an invariant is registered already")
        })
    }

    /// The check, if one is registered.
    pub(crate) fn get(&self) -> Option<&Check> {
        // SAFETY: null, or a check, which is never dropped.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }.map(|check| &**check)
    }
}
