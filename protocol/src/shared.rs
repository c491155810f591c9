//! Memory shared between a process and the driver: thread control blocks, lists of written pages, and
//! lock words.

/// Maximum number of domains that a request holds.
pub const HELD_MAX: usize = 256;

/// Bit of a lock word: threads wait in the driver, and the holder must wake them
/// ([`crate::ioctl::IOCTL_LOCK_WAKE`]).
pub const LOCK_WAITERS: u64 = 0x8000_0000_0000_0000;

/// Mask of a lock word: the tag of the request that holds the domain, or 0.
pub const LOCK_TAG: u64 = 0x7fff_ffff_ffff_ffff;

/// In place of a tag in a lock word: the domain is deleted, until another one gets its number. Not a tag of any request.
pub const LOCK_DELETED: u64 = LOCK_TAG;

/// Control block of a thread.
///
/// A page that the process maps writable and the driver reads in its fault handler. A request that
/// writes to no domain starts and ends by changes here, without a system call.
///
/// The library writes it unless stated otherwise. A wrong value can only harm requests of this thread:
/// a write to a domain is refused unless the lock word of the domain has the same tag.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ThreadControl {
    /// Tag of the request of this thread, or 0.
    pub tag: u64,
    /// Written by the driver before it sends the signal of the thread: tag of a request that has
    /// failed. A thread that has this tag must abandon the request; any other value is stale.
    pub failed: u64,
    /// Deadline in nanoseconds of `CLOCK_MONOTONIC` (initial time namespace), or 0. The driver checks
    /// it every 10 ms: never early, and late by one period at most.
    pub deadline_ns: u64,
    /// Number of entries in `held`.
    pub held_count: u32,
    /// Protection key for the drafts of the request, or 0 for none. One that is not among the thread's
    /// ([`crate::ioctl::IoctlThread::keys`]) counts as 0, and [`KEY_WRITES_OVER`] refuses all writes.
    /// Where the CPU has protection keys, the driver puts it into the page-table entries of drafts, so
    /// that only threads whose PKRU opens the key reach them. The thread that makes the first draft
    /// determines the key of the request. The driver opens the key in the PKRU of a thread that makes a draft.
    pub key: u32,
    /// Domains that the request holds or is about to lock. One of the threads of a request has the
    /// list. A domain is added before its lock is taken and removed after it is released, so that a
    /// thread can die at any point without leaving a lock. [`crate::ioctl::IOCTL_SUSPEND`] takes the
    /// list over.
    pub held: [u32; HELD_MAX],
}

/// In place of a key: the request writes to domains no more. What a signal handler of the server would write while it
/// ends is refused.
pub const KEY_WRITES_OVER: u32 = 0xffff_ffff;

/// Maximum number of pages in [`WrittenPages`].
pub const WRITTEN_MAX: usize = 1020;

/// Pages that a thread's request may have written to: drafts that first writes of this thread have made, of the page
/// itself or ahead of the writes to others.
///
/// A page of memory that the driver writes and the process maps read-only, so that a stray write cannot
/// hide what the request has changed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct WrittenPages {
    /// Tag of the request that the rest belongs to; it is stale if the thread has another tag.
    pub tag: u64,
    /// Number of drafts that the thread has made since the request began, or since its last commit or
    /// discard that left the request without drafts. If it exceeds [`WRITTEN_MAX`], the list is cut
    /// short, and [`crate::ioctl::IOCTL_DRAFTS`] has the rest.
    pub count: u32,
    /// The bits of PKRU that disable writes with the keys of this process's hot domains ([`HotDomains`]): where one is not
    /// set, the request may have written to resident pages, which are not on the list.
    pub hot_keys: u32,
    /// The pages, in the order of their drafts. A page may be in the list more than once, and stay
    /// in it after a commit of its domain alone.
    pub pages: [u32; WRITTEN_MAX],
}

/// Entries of [`HotDomains::entries`], and claims of a key. A power of two.
pub const HOT_ENTRIES: usize = 512;

/// Maximum number of resident pages of a domain.
pub const RESIDENT_MAX: usize = 16;

/// The hot domain that has a protection key.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct HotDomain {
    /// Its number.
    pub domain: u32,
    /// Number of its resident pages; 0 if no domain has the key.
    pub count: u32,
    /// Its resident pages.
    pub pages: [u32; RESIDENT_MAX],
}

/// The hot domains of a process: those whose resident pages are mapped writable under a protection key of the domain
/// between requests.
///
/// A page of memory that the driver writes and the process maps read-only. The page of claims of a key follows at
/// that many pages: [`HOT_ENTRIES`] words of 8 bytes, mapped under the key itself. A request that finds its domain here
/// opens the key, and then has the word of the domain go from 0 to its tag; if it is not 0, or the domain is not hot
/// any more by then, it calls [`crate::ioctl::IOCTL_COOL`]. A commit, discard or failure sets the word to 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct HotDomains {
    /// By the number of a domain modulo [`HOT_ENTRIES`]: the key of the hot domain with such a number, or 0.
    pub entries: [u32; HOT_ENTRIES],
    /// By key.
    pub domains: [HotDomain; 16],
}
