//! Memory shared between a process and the driver: thread control blocks and lock words.

/// Most domains that one request can hold at a time.
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
    /// Written by the driver, before it sends the thread's signal: tag of the request that has
    /// failed. A thread that carries this tag must come to its landing; any other value is of a
    /// request that it has left.
    pub failed: u64,
    /// `CLOCK_MONOTONIC` nanoseconds at which the request is over its deadline, or 0 for no limit.
    /// The driver's watch looks every 10 ms: it is never early, and late by one period at most.
    /// The clock is that of the initial time namespace.
    pub deadline_ns: u64,
    /// Drafts made by this thread in this request: raised by the driver, set to 0 by the library
    /// when a request begins and when it has committed. Not 0 any more once it was raised.
    pub drafts: u32,
    /// Entries in use in `held`.
    pub held_count: u32,
    /// Protection key of the request's drafts, 1 to 15, or 0 for none; anything else counts as 0.
    /// Where the CPU has protection keys, the driver puts it into the page-table entries of the
    /// drafts, so that only threads whose PKRU opens the key reach them. It is taken from the
    /// thread that makes the request's first draft and stays the request's: another key of another
    /// member changes nothing.
    pub key: u32,
    /// Complement of `drafts`, written with it. A request can overwrite the whole block: if the two do not
    /// fit, it may have drafts.
    pub drafts_complement: u32,
    /// Domains that the request holds or is about to lock. Of the threads that carry a request's
    /// tag, one has the list: whichever of them locks or unlocks a domain, it is entered there
    /// before its lock is taken and removed after it is released, so that a thread's death at any
    /// point leaves no lock behind. [`crate::ioctl::IOCTL_SUSPEND`] takes it over.
    pub held: [u32; HELD_MAX],
}
