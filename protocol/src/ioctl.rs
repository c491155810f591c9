//! The ioctl ABI of `/dev/vmsrs` and the offsets for `mmap`.
//!
//! Numbers follow Linux's `_IOC` encoding with the type byte `'V'`. They are written out for the
//! header generator; a test recomputes them from the sizes of the structures.
//!
//! # Errors of every call
//!
//! `ENODEV`: the device is gone, or the host missed a timeout or broke the protocol. `EINVAL`: a field
//! is out of range. `EFAULT`: the argument does not point to memory of the caller. `ENOTTY`: no such
//! call. `EBADFD`: no app is open on this file. `EINTR`: a signal came while the call waited.

use crate::incident::{BACKTRACE, REGISTERS};
use crate::{KEY_MAX, NAME_MAX};

/// Path of the character device.
pub const DEVICE_PATH: &str = "/dev/vmsrs";

/// What a successful call returns, plus the number of the file's app ([`crate::MAX_APPS`] if none is open on it).
///
/// So a caller can tell an answer of this file from that of another file, or of another app's, whose descriptor has the number
/// by now. No other file of Linux knows these numbers, but for virtual consoles, which know the two without an argument
/// ([`IOCTL_FLUSH`], [`IOCTL_THREAD_EXIT`]); a file system in user space may answer any number, by 0 for example.
pub const IOCTL_ANSWER: u32 = 0x5600_0000;

/// Opens the app of this file ([`IoctlOpenApp`]).
///
/// - `EBUSY`: another app is open on this file.
/// - `ENOSPC`: the host has [`crate::MAX_APPS`] apps.
/// - `ESTALE`: [`IoctlOpenApp::deletions`] is too long ago.
pub const IOCTL_OPEN_APP: u32 = 0xc078_5601;
/// Opens a domain ([`IoctlOpenDomain`]).
///
/// - `ENOSPC`: the app has [`crate::MAX_DOMAINS`] domains, or the vault has no room for the first extent or the mirror.
pub const IOCTL_OPEN_DOMAIN: u32 = 0xc060_5602;
/// Finds or creates an extent ([`IoctlExtent`]).
///
/// - `ENOMEM`: the vault is full.
pub const IOCTL_EXTENT: u32 = 0xc010_5603;
/// Registers the calling thread ([`IoctlThread`]).
///
/// - `EEXIST`: it is registered already.
/// - `EAGAIN`: too many threads.
pub const IOCTL_THREAD: u32 = 0xc028_5604;
/// Fetches tags ([`IoctlTags`]).
pub const IOCTL_TAGS: u32 = 0x8010_5605;
/// Commits drafts of a request: `fadvise64(fd, tag, domain << 32 | flags, ADVICE_COMMIT)`, with the domain to commit or
/// [`crate::NONE`] for all, and [`COMMIT_SEAL`] and [`COMMIT_ALONE`] or 0 as flags ([`commit_length`]). The answer is that of
/// an ioctl.
///
/// An ioctl's security hooks and the copy of its argument would add a twentieth to a small commit. Linux's other files refuse
/// this advice with an error (`EINVAL`, `ESPIPE` or `EBADF`).
///
/// - `EINVAL`: the tag is 0, or another argument is out of range.
/// - `EPERM`: it is not the request of the calling thread.
/// - `ESTALE`: the driver has failed the request (deadline); nothing is committed.
/// - `EOWNERDEAD`: the calling thread has the key of a hot domain open, but a stray write has taken the domain from its
///   request; nothing is committed.
/// - `ETIMEDOUT`: committed, but the host did not seal in time ([`COMMIT_SEAL`] only).
/// - `EIO`: committed, but content of a domain that the thread holds was lost before it was sealed, because the
///   host's memory is broken ([`COMMIT_SEAL`] only).
pub const ADVICE_COMMIT: i32 = 0x5606;
/// Fails the request of the calling thread ([`IoctlFail`]).
///
/// Its drafts are discarded, then the locks of its domains are released, its other threads are
/// interrupted (repeatedly, until they have left it), and the host gets the report. If it has failed
/// before, the result is that incident.
pub const IOCTL_FAIL: u32 = 0xc1a0_5607;
/// Discards the drafts of a request without an incident ([`IoctlTag`]). It keeps its locks.
pub const IOCTL_DISCARD: u32 = 0x4008_5608;
/// Waits for the lock of a domain and takes it ([`IoctlLock`]).
///
/// - `ETIMEDOUT`: not within the timeout.
/// - `EINTR`: a signal came first.
/// - `EEXIST`: the request of the calling thread holds it already.
/// - `ESTALE`: the request has failed.
/// - `EIDRM`: the domain is deleted.
/// - `EDEADLK`: the holder waits, directly or through other requests, for a domain that this request
///   holds. The call that would close the cycle gets this; the others go on waiting.
///
/// A request waits when any of its threads waits. The lock of a request that has no threads and is
/// not suspended is released after a waiter has waited for a second or until a shorter timeout.
pub const IOCTL_LOCK_WAIT: u32 = 0x4010_5609;
/// Wakes the threads that wait for the lock of a domain ([`IoctlLock`]).
pub const IOCTL_LOCK_WAKE: u32 = 0x4010_560a;
/// Sends the seal batch and waits until everything committed before is sealed. No argument.
///
/// - `ETIMEDOUT`: the host did not answer in time.
pub const IOCTL_FLUSH: u32 = 0x0000_560b;
/// Reads the state of the driver ([`IoctlInfo`]).
pub const IOCTL_INFO: u32 = 0x8058_560c;
/// Unregisters the calling thread; a request that it still has is failed
/// ([`crate::incident::KIND_THREAD_DEATH`]). No argument.
///
/// - `ENOENT`: it is not registered.
pub const IOCTL_THREAD_EXIT: u32 = 0x0000_560d;
/// Suspends the request of the calling thread ([`IoctlSuspend`]).
///
/// It keeps its drafts and the domains in `held` of the thread, though no thread has its tag. The caller
/// clears its control block afterwards.
///
/// - `EPERM`: it is not the request of the calling thread.
/// - `ESTALE`: the request has failed.
/// - `EALREADY`: it is suspended already.
/// - `EAGAIN`: [`SUSPENDED_MAX`] requests of this file are suspended.
///
/// A suspended request that misses its deadline is failed: its drafts are discarded and its locks
/// released at once, and its tag is kept until [`IOCTL_RESUME`] or [`IOCTL_ABANDON`]. When the last
/// reference to this file is dropped, it is failed ([`crate::incident::KIND_PROCESS_DEATH`]).
pub const IOCTL_SUSPEND: u32 = 0x4010_560e;
/// Resumes a suspended request ([`IoctlTag`]). The control block of the calling thread has its tag and
/// its domains already.
///
/// - `ENOENT`: no such request of this file is suspended.
/// - `ESTALE`: it has failed meanwhile; [`IOCTL_FAIL`] gives the incident.
pub const IOCTL_RESUME: u32 = 0x4008_560f;
/// Gives up a suspended request ([`IoctlTag`]): its drafts are discarded, then its locks are released.
/// The calling thread need not be registered.
///
/// - `ENOENT`: no such request of this file is suspended.
pub const IOCTL_ABANDON: u32 = 0x4008_5610;
/// Lists the pages of a domain of which a request has drafts ([`IoctlDrafts`]), in the order of their
/// first write.
///
/// - `EPERM`: it is not the request of the calling thread.
pub const IOCTL_DRAFTS: u32 = 0xc020_5611;
/// Has the pages of a domain, whose lock the request of the calling thread has, be ordinary ones ([`IoctlCool`]): what
/// the request has written to resident ones becomes drafts. Closes the domain's key in PKRU.
///
/// - `EPERM`: it is not the request of the calling thread.
/// - `ESTALE`: the request has failed.
/// - `EOWNERDEAD`: another request has the domain, whose lock word a stray write has changed.
pub const IOCTL_COOL: u32 = 0x4010_5612;
/// Counts what the calling process has open ([`IoctlUsage`]).
pub const IOCTL_USAGE: u32 = 0x8010_5613;

/// Deletes a domain, whose lock the request of the calling thread has ([`IoctlDelete`]). Its pages are gone for all processes
/// when the call returns, and its lock word is [`crate::shared::LOCK_DELETED`]; what waits for the lock gets `EIDRM`. The host
/// learns of it with the next batch, like of a commit.
///
/// - `EINVAL`: there is no such domain.
/// - `EPERM`: it is not the request of the calling thread, or it does not have the lock.
/// - `ESTALE`: the request has failed.
/// - `EBUSY`: the request has written to the domain.
pub const IOCTL_DELETE: u32 = 0x4010_5614;
/// Lists domains that were deleted ([`IoctlDeleted`]): what a process knows of these numbers belongs to no domain any more. A
/// number is used again when every file of the app has said that its process has noted the deletion, by
/// [`IoctlDeleted::after`].
pub const IOCTL_DELETED: u32 = 0xc020_5615;
/// Counts the pages of a domain ([`IoctlDomainInfo`]).
///
/// - `EINVAL`: there is no such domain.
pub const IOCTL_DOMAIN_INFO: u32 = 0xc018_5616;
/// Leases bytes of a domain ([`IoctlLease`]): maps their pages once more, read-only, as they are committed at that moment. What
/// that mapping shows never changes, whatever becomes of the pages and of the domain; `munmap` of all of it ends the lease, as
/// does the end of the process.
///
/// - `EINVAL`: the bytes are not all of one domain with that number, or they are none or too many ([`LEASE_PAGES_MAX`]).
/// - `EBUSY`: a request has changed them and not committed that.
/// - `ENOSPC`: too many pages are leased.
/// - `EIO`: content is lost.
pub const IOCTL_LEASE: u32 = 0xc018_5617;

/// The `mmap` offset of the pages of app `n` is `n` shifted left by this.
pub const APP_OFFSET_SHIFT: u32 = 40;
/// `mmap` offset of the first control block; [`IoctlThread`] has that of a thread.
pub const CONTROL_OFFSET: u64 = 0x0004_0000_0000_0000;
/// `mmap` offset of the first list of written pages; [`IoctlThread`] has that of a thread.
pub const WRITTEN_OFFSET: u64 = 0x0006_0000_0000_0000;
/// `mmap` offset of the page [`crate::shared::HotDomains`] of this file, for a shared mapping to read. At that many pages
/// from it, up to 15, are the claims of a protection key: a process that maps these gives the key to hot domains.
pub const HOT_OFFSET: u64 = 0x0007_0000_0000_0000;
/// `mmap` offset of the first lease; only [`IOCTL_LEASE`] maps there.
pub const LEASES_OFFSET: u64 = 0x0009_0000_0000_0000;
/// `mmap` offset of the lock words of the app: 8 bytes for each domain, indexed by domain.
pub const LOCKS_OFFSET: u64 = 0x0008_0000_0000_0000;
/// Size of the lock words in bytes: 8 for each of [`crate::MAX_DOMAINS`] domains.
pub const LOCKS_LENGTH: u64 = 0x0080_0000;

/// Commit flag: return once the host has sealed the commit.
pub const COMMIT_SEAL: u32 = 1;

/// Commit flag: one thread alone has worked for the request, and in one domain alone. Its domain may become hot.
pub const COMMIT_ALONE: u32 = 2;

/// The length that [`ADVICE_COMMIT`] takes: the domain to commit, or [`crate::NONE`] for all, and flags.
pub const fn commit_length(domain: u32, flags: u32) -> u64 {
    (domain as u64) << 32 | flags as u64
}

/// Argument of [`IOCTL_OPEN_APP`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlOpenApp {
    /// In: name of at least one byte, padded with zeros.
    pub name: [u8; NAME_MAX],
    /// Out: address at which the pages must be mapped (`MAP_FIXED_NOREPLACE`).
    pub base: u64,
    /// Out: size of the address range in bytes.
    pub length: u64,
    /// Out: `mmap` offset of the pages, for a shared mapping to read and write.
    pub pages_offset: u64,
    /// Out: `mmap` offset of the lock words.
    pub locks_offset: u64,
    /// Out: size of the lock words in bytes.
    pub locks_length: u64,
    /// In: [`crate::device::ABI_VERSION`] of the library.
    pub abi_version: u32,
    /// Out: number of the app.
    pub app: u32,
    /// In: how far the process has noted deletions of the app's domains, as in [`IoctlDeleted::after`]; `u64::MAX` if it has
    /// opened none yet. Out: the number of the last one that counts as noted.
    pub deletions: u64,
}

/// Argument of [`IOCTL_OPEN_DOMAIN`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlOpenDomain {
    /// In: the key, padded with zeros.
    pub key: [u8; KEY_MAX],
    /// In: length of the key.
    pub key_length: u32,
    /// Out: number of the domain, the index of its lock word.
    pub domain: u32,
    /// Out: number of its extents.
    pub extents: u32,
    /// In: [`crate::control::DOMAIN_MIRROR`] or 0. Out: flags of the domain.
    pub flags: u32,
    /// In: number of pages of the first extent if it has none yet, or 0 to make none.
    pub pages: u32,
    /// Reserved.
    pub reserved: u32,
    /// Out: number of the last deletion in the app, for [`IOCTL_DELETED`].
    pub deletions: u64,
}

/// Argument of [`IOCTL_EXTENT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlExtent {
    /// In: the domain.
    pub domain: u32,
    /// In: index of the extent, at most the number of extents of the domain.
    pub index: u32,
    /// In: number of pages of a new extent. Out: number of its pages.
    pub pages: u32,
    /// Out: first page.
    pub page: u32,
}

/// Argument of [`IOCTL_THREAD`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlThread {
    /// Out: `mmap` offset of the control block ([`crate::shared::ThreadControl`]).
    pub control_offset: u64,
    /// Out: `mmap` offset of its list of written pages ([`crate::shared::WrittenPages`]), for a shared
    /// mapping to read.
    pub written_offset: u64,
    /// Out: first tag for this thread.
    pub tag_first: u64,
    /// Out: number of consecutive tags.
    pub tag_count: u64,
    /// In: signal for the thread when its request must end (deadline, failure of another thread), or
    /// 0.
    pub signal: u32,
    /// In: protection keys that drafts of the thread's requests may have; bit 1 is for key 1, and so on to 15. Bit 17 says
    /// that key 1 is one for hot domains, and so on to 31.
    pub keys: u32,
}

/// Argument of [`IOCTL_TAGS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlTags {
    /// Out: first tag.
    pub tag_first: u64,
    /// Out: number of consecutive tags.
    pub tag_count: u64,
}

/// Argument of [`IOCTL_FAIL`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlFail {
    /// Out: number of the incident.
    pub incident: u64,
    /// In: tag of the request.
    pub tag: u64,
    /// In: time of the detection in nanoseconds of `CLOCK_MONOTONIC`, or 0.
    pub detected_ns: u64,
    /// Out: nanoseconds from the detection to the end of the discard.
    pub recovery_ns: u64,
    /// In: address of the failed access or of the block; valid with
    /// [`crate::incident::REPORT_ADDRESS`].
    pub address: u64,
    /// In: one of `KIND_*`; [`crate::incident::KIND_MEMORY`] is refined by the driver
    /// ([`crate::incident::KIND_FOREIGN_WRITE`], [`crate::incident::KIND_FOREIGN_DRAFT`],
    /// [`crate::incident::KIND_SEALED_WRITE`], [`crate::incident::KIND_NO_FRAMES`],
    /// [`crate::incident::KIND_DEADLINE`]). Out: the kind in the report.
    pub kind: u32,
    /// In: the signal, or 0.
    pub signal: i32,
    /// In: `si_code`, or 0.
    pub code: i32,
    /// Out: number of drafts that were dropped, by this call and before it (by another thread of the
    /// request, or by the driver after its deadline).
    pub drafts: u32,
    /// In: signals that the library handles, signal 1 in the lowest bit. Out: those of them for which the process has another
    /// handler than `handler`.
    pub handled: u64,
    /// In: registers, indexed by `REG_*`.
    pub registers: [u64; REGISTERS],
    /// In: return addresses, innermost first; unused ones are 0.
    pub backtrace: [u64; BACKTRACE],
    /// In: address of the stack to keep as evidence. Evidence is read after the drafts are discarded
    /// and the locks released; what cannot be read is left out.
    pub stack: u64,
    /// In: start of the whole stack.
    pub stack_low: u64,
    /// In: end of the whole stack.
    pub stack_high: u64,
    /// In: address of the module table ([`crate::incident::ModuleEntry`]).
    pub modules: u64,
    /// In: address of the message.
    pub text: u64,
    /// In: size of the stack, at most [`crate::incident::STACK_MAX`].
    pub stack_bytes: u32,
    /// In: size of the module table, at most [`crate::incident::MODULES_MAX`].
    pub modules_bytes: u32,
    /// In: size of the message, at most [`crate::incident::TEXT_MAX`].
    pub text_bytes: u32,
    /// In: [`crate::incident::REPORT_ADDRESS`], [`crate::incident::REPORT_LEFT`],
    /// [`crate::incident::REPORT_LEFT_ESTIMATE`].
    pub flags: u32,
    /// In: descriptors that the request has left open; valid with [`crate::incident::REPORT_LEFT`].
    pub left_descriptors: u32,
    /// Reserved.
    pub reserved: u32,
    /// In: bytes of memory that the request has left allocated; valid with
    /// [`crate::incident::REPORT_LEFT`].
    pub left_bytes: u64,
    /// In: address of the library's signal handler.
    pub handler: u64,
}

/// Maximum number of suspended requests of an open file.
pub const SUSPENDED_MAX: u32 = 4096;

/// Argument of [`IOCTL_SUSPEND`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlSuspend {
    /// In: tag of the request.
    pub tag: u64,
    /// In: deadline in nanoseconds of `CLOCK_MONOTONIC`, or 0.
    pub deadline_ns: u64,
}

/// Argument of [`IOCTL_DISCARD`], [`IOCTL_RESUME`] and [`IOCTL_ABANDON`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlTag {
    /// In: tag of the request.
    pub tag: u64,
}

/// Argument of [`IOCTL_COOL`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlCool {
    /// In: tag of the request.
    pub tag: u64,
    /// In: the domain.
    pub domain: u32,
    /// Reserved: 0.
    pub reserved: u32,
}

/// Argument of [`IOCTL_DELETE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlDelete {
    /// In: tag of the request.
    pub tag: u64,
    /// In: the domain.
    pub domain: u32,
    /// Reserved: 0.
    pub reserved: u32,
}

/// Maximum number of domains in the result of [`IOCTL_DELETED`].
pub const DELETED_MAX: u32 = 512;

/// Argument of [`IOCTL_DELETED`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlDeleted {
    /// In: number of the last deletion that the process has noted.
    pub after: u64,
    /// In: address of an array of `capacity` numbers of domains, of 32 bits each, for those that were deleted after that.
    pub domains: u64,
    /// Out: number of the last deletion in the array, or of the last one of all if that is in it.
    pub last: u64,
    /// In: size of the array, 1 to [`DELETED_MAX`].
    pub capacity: u32,
    /// Out: number of domains in the array; `capacity` if there may be more.
    pub count: u32,
}

/// Argument of [`IOCTL_DOMAIN_INFO`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlDomainInfo {
    /// In: the domain.
    pub domain: u32,
    /// Out: number of its extents.
    pub extents: u32,
    /// Out: pages in its extents.
    pub pages: u32,
    /// Out: pages of these that were ever committed.
    pub committed: u32,
    /// Out: committed pages whose newest version is not sealed yet.
    pub unsealed: u32,
    /// Out: drafts of the request that writes it, those of resident pages included.
    pub drafts: u32,
}

/// Maximum number of leases at a time.
pub const LEASES_MAX: u32 = 65536;
/// Maximum number of pages of a lease.
pub const LEASE_PAGES_MAX: u32 = 1024;

/// Argument of [`IOCTL_LEASE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlLease {
    /// In: address of the first byte. Out: where the lease shows it.
    pub address: u64,
    /// In: number of bytes.
    pub length: u64,
    /// In: the domain.
    pub domain: u32,
    /// Reserved: 0.
    pub reserved: u32,
}

/// Answer of [`IOCTL_USAGE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlUsage {
    /// Open descriptors.
    pub descriptors: u32,
    /// Threads.
    pub threads: u32,
    /// Bytes of private writable memory, stacks included.
    pub memory: u64,
}

/// Argument of [`IOCTL_LOCK_WAIT`] and [`IOCTL_LOCK_WAKE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlLock {
    /// In: tag of the request that takes the lock; ignored by [`IOCTL_LOCK_WAKE`].
    pub tag: u64,
    /// In: the domain.
    pub domain: u32,
    /// In: timeout in milliseconds, 1 to 3,600,000; ignored by [`IOCTL_LOCK_WAKE`].
    pub timeout_ms: u32,
}

/// Maximum number of pages in the result of [`IOCTL_DRAFTS`].
pub const DRAFTS_MAX: u32 = 1024;

/// Argument of [`IOCTL_DRAFTS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlDrafts {
    /// In: tag of the request.
    pub tag: u64,
    /// In: address of an array of `capacity` page numbers of 32 bits.
    pub pages: u64,
    /// In: the domain.
    pub domain: u32,
    /// In: number of pages to skip.
    pub skip: u32,
    /// In: size of the array, 1 to [`DRAFTS_MAX`].
    pub capacity: u32,
    /// Out: number of pages in the array.
    pub count: u32,
}

/// Argument of [`IOCTL_INFO`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlInfo {
    /// Number of frames in the vault.
    pub vault_frames: u32,
    /// Number of frames in the pool whose memory is not known to be broken.
    pub pool_frames: u32,
    /// Free frames in the pool of the driver.
    pub pool_free: u32,
    /// Drafts of all requests.
    pub drafts: u32,
    /// Pages that are committed and not sealed yet.
    pub unsealed: u32,
    /// 1 if the host missed a timeout or broke the protocol; no domain can be written then.
    pub broken: u32,
    /// Frames of the pool that resident pages have, between requests too.
    pub resident: u32,
    /// Reports that the host has not taken yet. They hold the frames of the drafts that they name.
    pub reports: u32,
    /// Commits of at least one page, since the driver was loaded.
    pub commits: u64,
    /// Pages sealed. A page that was committed several times between two seals counts once.
    pub sealed_pages: u64,
    /// Drafts discarded.
    pub discarded: u64,
    /// Incidents reported by the driver.
    pub incidents: u64,
    /// Seal messages sent. Compared with `commits`, this tells how rare exits are.
    pub seal_messages: u64,
    /// Write faults that made a draft.
    pub write_faults: u64,
    /// Calls that removed page-table entries of mapped pages; each flushes the TLB.
    pub zaps: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    /// `_IOC(dir, 'V', nr, size)` of Linux's `asm-generic/ioctl.h`.
    const fn ioc(dir: u32, nr: u32, size: usize) -> u32 {
        dir << 30 | (size as u32) << 16 | (b'V' as u32) << 8 | nr
    }
    const NONE: u32 = 0;
    const WRITE: u32 = 1;
    const READ: u32 = 2;

    #[test]
    fn ioctl_numbers_match_sizes_of_arguments() {
        assert_eq!(
            IOCTL_OPEN_APP,
            ioc(READ | WRITE, 1, size_of::<IoctlOpenApp>())
        );
        assert_eq!(
            IOCTL_OPEN_DOMAIN,
            ioc(READ | WRITE, 2, size_of::<IoctlOpenDomain>())
        );
        assert_eq!(IOCTL_EXTENT, ioc(READ | WRITE, 3, size_of::<IoctlExtent>()));
        assert_eq!(IOCTL_THREAD, ioc(READ | WRITE, 4, size_of::<IoctlThread>()));
        assert_eq!(IOCTL_TAGS, ioc(READ, 5, size_of::<IoctlTags>()));
        assert_eq!(IOCTL_FAIL, ioc(READ | WRITE, 7, size_of::<IoctlFail>()));
        assert_eq!(IOCTL_DISCARD, ioc(WRITE, 8, size_of::<IoctlTag>()));
        assert_eq!(IOCTL_LOCK_WAIT, ioc(WRITE, 9, size_of::<IoctlLock>()));
        assert_eq!(IOCTL_LOCK_WAKE, ioc(WRITE, 10, size_of::<IoctlLock>()));
        assert_eq!(IOCTL_FLUSH, ioc(NONE, 11, 0));
        assert_eq!(IOCTL_INFO, ioc(READ, 12, size_of::<IoctlInfo>()));
        assert_eq!(IOCTL_THREAD_EXIT, ioc(NONE, 13, 0));
        assert_eq!(IOCTL_SUSPEND, ioc(WRITE, 14, size_of::<IoctlSuspend>()));
        assert_eq!(IOCTL_RESUME, ioc(WRITE, 15, size_of::<IoctlTag>()));
        assert_eq!(IOCTL_ABANDON, ioc(WRITE, 16, size_of::<IoctlTag>()));
        assert_eq!(
            IOCTL_DRAFTS,
            ioc(READ | WRITE, 17, size_of::<IoctlDrafts>())
        );
        assert_eq!(IOCTL_COOL, ioc(WRITE, 18, size_of::<IoctlCool>()));
        assert_eq!(IOCTL_USAGE, ioc(READ, 19, size_of::<IoctlUsage>()));
        assert_eq!(IOCTL_DELETE, ioc(WRITE, 20, size_of::<IoctlDelete>()));
        assert_eq!(
            IOCTL_DELETED,
            ioc(READ | WRITE, 21, size_of::<IoctlDeleted>())
        );
        assert_eq!(
            IOCTL_DOMAIN_INFO,
            ioc(READ | WRITE, 22, size_of::<IoctlDomainInfo>())
        );
        assert_eq!(IOCTL_LEASE, ioc(READ | WRITE, 23, size_of::<IoctlLease>()));
    }

    #[test]
    fn app_ranges_end_below_addresses_of_programs() {
        let end = crate::APP_BASE
            + u64::from(crate::MAX_APPS)
                * u64::from(crate::APP_PAGES)
                * u64::from(crate::PAGE_SIZE);
        assert!(end <= 0x5555_0000_0000);
        assert_eq!(
            1u64 << APP_OFFSET_SHIFT,
            u64::from(crate::APP_PAGES) * u64::from(crate::PAGE_SIZE)
        );
    }
}
