//! Memory shared between a process and the driver: thread control blocks and lock words.

/// Most domains that one thread can hold at a time.
pub const HELD_MAX: usize = 32;

/// Bit of a lock word: threads wait in the driver; whoever releases must call
/// [`crate::ioctl::IOCTL_LOCK_WAKE`].
pub const LOCK_WAITERS: u64 = 0x8000_0000_0000_0000;

/// Mask of a lock word: the tag of the request that holds the domain, or 0.
pub const LOCK_TAG: u64 = 0x7fff_ffff_ffff_ffff;

/// The control block of one thread: one page, mapped read-write by the process, read by the driver
/// in its fault handler. A request that writes nothing tagged begins and ends by changes here
/// alone, without a system call.
///
/// Written by the library unless said otherwise. The driver trusts nothing in it beyond this
/// thread's own requests: a wrong tag makes writes fail, since the lock word of every domain
/// written must carry the same tag.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ThreadControl {
    /// Tag of the request that the thread works for, or 0.
    pub tag: u64,
    /// Drafts made by this thread in this request: raised by the driver, set to 0 by the library
    /// when a request begins and when it has committed.
    pub drafts: u32,
    /// Milliseconds that the request may take, or 0 for no limit. Counted from the first time that
    /// the driver's watch sees the tag, so it is never early, and late by at most two ticks of the
    /// watch.
    pub deadline_ms: u32,
    /// Entries in use in `held`.
    pub held_count: u32,
    /// Protection key of the request's drafts, 1 to 15, or 0 for none; anything else counts as 0.
    /// Where the CPU has protection keys, the driver puts it into the page-table entries of the
    /// drafts, so that only threads whose PKRU opens the key reach them. It is taken from the
    /// thread that makes the request's first draft and stays the request's: another key of another
    /// member changes nothing.
    pub key: u32,
    /// Domains that this thread holds or is about to lock, in the order of their locking. A domain
    /// is entered here before its lock is taken and removed after it is released, so that a
    /// thread's death at any point leaves no lock behind.
    pub held: [u32; HELD_MAX],
}
