//! The ioctl ABI of `/dev/vmsrs` and the offsets for `mmap`.
//!
//! Numbers follow Linux's `_IOC` encoding with the type byte `'V'`; they are written out so that
//! the header generator can copy them, and a test recomputes them from the structures' sizes.
//!
//! # Errors that every call may give
//!
//! `ENODEV`: the device is gone or the host is broken (it missed a timeout or broke the protocol).
//! `EINVAL`: a field is out of its range. `EFAULT`: the argument is no memory of the caller.
//! `ENOTTY`: no such call. `EBADFD`: no app is open on this file. `ERESTARTSYS` never reaches a
//! program; `EINTR` does where a call waits.

use crate::incident::{BACKTRACE, REGISTERS};
use crate::{KEY_MAX, NAME_MAX};

/// Path of the character device.
pub const DEVICE_PATH: &str = "/dev/vmsrs";

/// Opens the app with [`IoctlOpenApp`]. `EBUSY`: this file has another app open. `ENOSPC`: the host
/// has [`crate::MAX_APPS`] apps.
pub const IOCTL_OPEN_APP: u32 = 0xc070_5601;
/// Opens a domain with [`IoctlOpenDomain`]. `ENOSPC`: the app has [`crate::MAX_DOMAINS`] domains,
/// or the window has no room for the mirror.
pub const IOCTL_OPEN_DOMAIN: u32 = 0xc050_5602;
/// Finds or makes an extent with [`IoctlExtent`]. `ENOMEM`: the window is full.
pub const IOCTL_EXTENT: u32 = 0xc010_5603;
/// Registers the calling thread with [`IoctlThread`]. `EEXIST`: it is registered already.
/// `EAGAIN`: too many threads.
pub const IOCTL_THREAD: u32 = 0xc020_5604;
/// Fetches more tags with [`IoctlTags`].
pub const IOCTL_TAGS: u32 = 0x8010_5605;
/// Commits with [`IoctlCommit`]. `EPERM`: the tag is not the calling thread's. `ESTALE`: the request
/// was failed by the driver (deadline); nothing is committed. `ETIMEDOUT`: committed, but the host
/// did not seal in time (with [`COMMIT_SEAL`] only).
pub const IOCTL_COMMIT: u32 = 0x4010_5606;
/// Fails the calling thread's request with [`IoctlFail`]: drafts are discarded, then the locks of
/// its domains are released, the other threads that carry its tag are interrupted (again and again
/// for as long as they carry it), the report goes to the host. When it has failed before, the answer
/// is that incident.
pub const IOCTL_FAIL: u32 = 0xc180_5607;
/// Discards the calling thread's drafts without an incident, with [`IoctlTag`]; locks stay as they
/// are.
pub const IOCTL_DISCARD: u32 = 0x4008_5608;
/// Waits for a domain's lock and takes it, with [`IoctlLock`]. `ETIMEDOUT`: not within the timeout.
/// `EINTR`: a signal came first. `EEXIST`: the calling thread's request holds it already. `ESTALE`:
/// the request has failed. `EDEADLK`: the holder waits, directly or through other requests, for a
/// domain that the caller's request holds; whoever closes such a circle gets this answer, and the
/// others go on waiting. A request counts as waiting when any of its threads waits. The lock of a
/// request that no thread carries any more and that is not suspended is released when somebody has
/// waited for it for a second, or to the end of a shorter timeout.
pub const IOCTL_LOCK_WAIT: u32 = 0x4010_5609;
/// Wakes the threads that wait for a domain's lock, with [`IoctlLock`].
pub const IOCTL_LOCK_WAKE: u32 = 0x4010_560a;
/// Sends the seal batch now and waits until everything committed before is sealed. No argument.
/// `ETIMEDOUT`: the host did not answer in time.
pub const IOCTL_FLUSH: u32 = 0x0000_560b;
/// Reads the driver's state with [`IoctlInfo`].
pub const IOCTL_INFO: u32 = 0x8040_560c;
/// Unregisters the calling thread; a request it still has is failed
/// ([`crate::incident::KIND_THREAD_DEATH`]). No argument. `ENOENT`: it is not registered.
pub const IOCTL_THREAD_EXIT: u32 = 0x0000_560d;
/// Sets the calling thread's request aside, with [`IoctlSuspend`]: its drafts and the domains in the
/// thread's `held` stay its own without any thread that carries its tag. The caller clears its
/// control block afterwards. `EPERM`: the tag is not the calling thread's. `ESTALE`: the request has
/// failed. `EALREADY`: it is suspended already. `EAGAIN`: [`SUSPENDED_MAX`] requests are suspended
/// through this file.
///
/// A suspended request that misses its deadline is failed by the driver: its drafts are gone and its
/// locks free at once, and its tag is remembered until [`IOCTL_RESUME`] or [`IOCTL_ABANDON`]. When
/// the last reference to the file through which it was suspended goes, it is failed
/// ([`crate::incident::KIND_PROCESS_DEATH`]).
pub const IOCTL_SUSPEND: u32 = 0x4010_560e;
/// Takes a suspended request up again, with [`IoctlTag`]. The calling thread carries its tag and
/// has its domains in `held` already. `ENOENT`: no such request was suspended through this file.
/// `ESTALE`: it has failed meanwhile; [`IOCTL_FAIL`] gives the incident.
pub const IOCTL_RESUME: u32 = 0x4008_560f;
/// Gives a suspended request up, with [`IoctlTag`]: drafts are discarded, then its locks are
/// released. The calling thread need not be registered. `ENOENT`: as for [`IOCTL_RESUME`].
pub const IOCTL_ABANDON: u32 = 0x4008_5610;
/// Lists the pages of a domain that the calling thread's request has drafts of, with [`IoctlDrafts`],
/// in the order in which they were first written. `EPERM`: the tag is not the calling thread's.
pub const IOCTL_DRAFTS: u32 = 0xc020_5611;

/// `mmap` offset of app `n`'s pages: `n << APP_OFFSET_SHIFT`.
pub const APP_OFFSET_SHIFT: u32 = 40;
/// `mmap` offset of the first thread's control page; [`IoctlThread`] gives each thread's own.
pub const CONTROL_OFFSET: u64 = 0x0004_0000_0000_0000;
/// `mmap` offset of the opened app's lock words: one `u64` a domain, indexed by domain.
pub const LOCKS_OFFSET: u64 = 0x0008_0000_0000_0000;
/// Bytes of lock words that may be mapped: [`crate::MAX_DOMAINS`] words of 8 bytes.
pub const LOCKS_LENGTH: u64 = 0x0080_0000;

/// Commit flag: return when the host has sealed the commit.
pub const COMMIT_SEAL: u32 = 1;

/// Argument of [`IOCTL_OPEN_APP`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlOpenApp {
    /// In: name, padded with zero bytes; at least one byte.
    pub name: [u8; NAME_MAX],
    /// Out: address where the pages must be mapped (with `MAP_FIXED_NOREPLACE`).
    pub base: u64,
    /// Out: bytes of address range.
    pub length: u64,
    /// Out: `mmap` offset of the pages. Map shared, readable and writable.
    pub pages_offset: u64,
    /// Out: `mmap` offset of the lock words.
    pub locks_offset: u64,
    /// Out: bytes of lock words.
    pub locks_length: u64,
    /// In: [`crate::device::ABI_VERSION`] of the library.
    pub abi_version: u32,
    /// Out: the app's number.
    pub app: u32,
}

/// Argument of [`IOCTL_OPEN_DOMAIN`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlOpenDomain {
    /// In: the key; bytes behind `key_length` are zero.
    pub key: [u8; KEY_MAX],
    /// In: bytes of `key` in use.
    pub key_length: u32,
    /// Out: the domain's number, the index of its lock word.
    pub domain: u32,
    /// Out: extents it has; 0 for a new one.
    pub extents: u32,
    /// In: [`crate::control::DOMAIN_MIRROR`] or 0. Out: the domain's flags.
    pub flags: u32,
}

/// Argument of [`IOCTL_EXTENT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlExtent {
    /// In: the domain.
    pub domain: u32,
    /// In: index of the extent, at most the number of extents that the domain has.
    pub index: u32,
    /// In: pages wanted if it does not exist yet. Out: pages it has.
    pub pages: u32,
    /// Out: its first page.
    pub page: u32,
}

/// Argument of [`IOCTL_THREAD`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlThread {
    /// Out: `mmap` offset of the thread's control page ([`crate::shared::ThreadControl`]).
    pub control_offset: u64,
    /// Out: first tag that this thread may use.
    pub tag_first: u64,
    /// Out: how many consecutive tags it may use.
    pub tag_count: u64,
    /// In: signal that interrupts the thread when its request must end (deadline, failure of
    /// another member); 0 for none.
    pub signal: u32,
    /// Reserved.
    pub reserved: u32,
}

/// Argument of [`IOCTL_TAGS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlTags {
    /// Out: first tag.
    pub tag_first: u64,
    /// Out: how many.
    pub tag_count: u64,
}

/// Argument of [`IOCTL_COMMIT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlCommit {
    /// In: the request's tag.
    pub tag: u64,
    /// In: [`COMMIT_SEAL`] or 0.
    pub flags: u32,
    /// In: the one domain to commit, or [`crate::NONE`] for all that the request has drafts in.
    pub domain: u32,
}

/// Argument of [`IOCTL_FAIL`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlFail {
    /// Out: number of the incident.
    pub incident: u64,
    /// In: the request's tag.
    pub tag: u64,
    /// In: `CLOCK_MONOTONIC` nanoseconds at the detection, or 0.
    pub detected_ns: u64,
    /// Out: nanoseconds from the detection to the end of the discard.
    pub recovery_ns: u64,
    /// In: address of the access that failed; meaningless without
    /// [`crate::incident::REPORT_ADDRESS`].
    pub address: u64,
    /// In: one of the `KIND_` constants; [`crate::incident::KIND_MEMORY`] is refined by the driver
    /// ([`crate::incident::KIND_FOREIGN_WRITE`], [`crate::incident::KIND_FOREIGN_DRAFT`],
    /// [`crate::incident::KIND_SEALED_WRITE`], [`crate::incident::KIND_NO_FRAMES`],
    /// [`crate::incident::KIND_DEADLINE`]). Out: the kind in the report.
    pub kind: u32,
    /// In: the signal, or 0.
    pub signal: i32,
    /// In: `si_code`, or 0.
    pub code: i32,
    /// Out: drafts of the request that were dropped, by this call and by those before it: another
    /// member's, or the driver's own when the request was overdue.
    pub drafts: u32,
    /// In: registers, see [`REGISTERS`].
    pub registers: [u64; REGISTERS],
    /// In: return addresses, see [`BACKTRACE`].
    pub backtrace: [u64; BACKTRACE],
    /// In: address of the bytes of stack to keep as evidence. Evidence is read when the drafts are
    /// gone and the locks are free; what cannot be read is left out.
    pub stack: u64,
    /// In: first byte of the whole stack.
    pub stack_low: u64,
    /// In: first byte behind the whole stack.
    pub stack_high: u64,
    /// In: address of the module table ([`crate::incident::ModuleEntry`]).
    pub modules: u64,
    /// In: address of the message.
    pub text: u64,
    /// In: bytes of stack, at most [`crate::incident::STACK_MAX`].
    pub stack_bytes: u32,
    /// In: bytes of module table, at most [`crate::incident::MODULES_MAX`].
    pub modules_bytes: u32,
    /// In: bytes of message, at most [`crate::incident::TEXT_MAX`].
    pub text_bytes: u32,
    /// In: [`crate::incident::REPORT_ADDRESS`] or 0.
    pub flags: u32,
}

/// Most requests that are suspended through one open file at a time.
pub const SUSPENDED_MAX: u32 = 4096;

/// Argument of [`IOCTL_SUSPEND`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlSuspend {
    /// In: the request's tag.
    pub tag: u64,
    /// In: `CLOCK_MONOTONIC` nanoseconds at which it is over its deadline, or 0 for no limit.
    pub deadline_ns: u64,
}

/// Argument of [`IOCTL_DISCARD`], [`IOCTL_RESUME`] and [`IOCTL_ABANDON`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlTag {
    /// In: the request's tag.
    pub tag: u64,
}

/// Argument of [`IOCTL_LOCK_WAIT`] and [`IOCTL_LOCK_WAKE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlLock {
    /// In: the tag that takes the lock; ignored by [`IOCTL_LOCK_WAKE`].
    pub tag: u64,
    /// In: the domain.
    pub domain: u32,
    /// In: most milliseconds to wait, 1 to 3,600,000; ignored by [`IOCTL_LOCK_WAKE`].
    pub timeout_ms: u32,
}

/// Most pages that one [`IOCTL_DRAFTS`] answers with.
pub const DRAFTS_MAX: u32 = 1024;

/// Argument of [`IOCTL_DRAFTS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlDrafts {
    /// In: tag of the request.
    pub tag: u64,
    /// In: address of room for `capacity` page numbers of 32 bits.
    pub pages: u64,
    /// In: the domain.
    pub domain: u32,
    /// In: pages to leave out at the front.
    pub skip: u32,
    /// In: most pages to list, 1 to [`DRAFTS_MAX`].
    pub capacity: u32,
    /// Out: pages listed.
    pub count: u32,
}

/// Argument of [`IOCTL_INFO`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IoctlInfo {
    /// Frames in the window.
    pub window_frames: u32,
    /// Most frames that the driver may hold as granted.
    pub pool_frames: u32,
    /// Frames free in the driver's pool.
    pub pool_free: u32,
    /// Drafts of all requests.
    pub drafts: u32,
    /// Pages committed and not yet sealed.
    pub unsealed: u32,
    /// 1 if the host broke the protocol or a timeout; nothing can be written then.
    pub broken: u32,
    /// Commits with at least one page since the driver was loaded.
    pub commits: u64,
    /// Pages sealed.
    pub sealed_pages: u64,
    /// Drafts discarded.
    pub discarded: u64,
    /// Incidents reported by the driver.
    pub incidents: u64,
    /// Seal messages sent; with `commits` this tells how rare exits are.
    pub seal_messages: u64,
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
    fn ioctl_numbers_agree_with_the_sizes_of_their_arguments() {
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
        assert_eq!(IOCTL_COMMIT, ioc(WRITE, 6, size_of::<IoctlCommit>()));
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
    }

    #[test]
    fn app_ranges_lie_below_the_addresses_linux_gives_to_programs() {
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
