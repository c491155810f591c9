//! Protocol between the host, the driver in the guest, and the guest library.
//!
//! Every structure that crosses a border (virtqueue, configuration space, ioctl, shared memory) is
//! defined here and nowhere else. The C header of the driver is generated from this crate.
//!
//! # Conventions
//!
//! * Byte order is little-endian: VMSRS runs on x86-64 only, and virtio 1.x is little-endian (Virtio
//!   1.2, 1.4).
//! * Every structure is `repr(C)` with explicit padding, so it is [`bytemuck::Pod`]. Any bit pattern is
//!   a value; the receiver validates what comes from an untrusted side.
//! * Frames and pages are [`PAGE_SIZE`] bytes. A frame is named by its index in the pool or in the
//!   vault, a page by its index in its app's address range.
//! * Reserved fields are written as zero and ignored when read.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(not(target_endian = "little"))]
compile_error!("VMSRS is for little-endian machines (x86-64)");

pub mod control;
pub mod device;
pub mod event;
pub mod heap;
pub mod incident;
pub mod ioctl;
pub mod seal;
pub mod shared;

/// Size of a frame and of a page in bytes.
pub const PAGE_SIZE: u32 = 4096;

/// The vault frame of zeros: content of every page that was never committed. It never changes.
pub const ZERO_FRAME: u32 = 0;

/// No frame, no page, or no domain.
pub const NONE: u32 = 0xffff_ffff;

/// In place of a vault frame: the content of the page is lost. Not the number of any frame.
pub const DAMAGED_FRAME: u32 = 0xffff_fffe;

/// Bit of a version's frame: the rest is the number of a pool frame, not of a vault frame. [`NONE`] and
/// [`DAMAGED_FRAME`] keep their meaning.
pub const IN_POOL: u32 = 0x8000_0000;

/// Maximum number of frames in the pool and in the vault.
pub const MAX_FRAMES: u32 = 0x4000_0000;

/// First page and length of an extent are multiples of this number of pages, so that the domain of a
/// page is found by one look-up of its unit.
pub const EXTENT_UNIT_PAGES: u32 = 4;

/// Address of page 0 of app 0, in every process. Page 0 of app `n` is [`APP_PAGES`] * [`PAGE_SIZE`] *
/// `n` bytes above. Above the shadow memory of the address sanitizer, which ends at `0x1000_7fff_8000`.
pub const APP_BASE: u64 = 0x1100_0000_0000;

/// Number of pages in the address range of an app (1 TiB).
pub const APP_PAGES: u32 = 0x1000_0000;

/// Maximum number of pages in an extent: those of the whole address range. How many there can be in all, the window decides.
pub const EXTENT_MAX_PAGES: u32 = APP_PAGES;

/// Maximum number of apps in a virtual machine. Their ranges end below the addresses that Linux gives
/// to programs, stacks and libraries, and below the heap of the leak sanitizer, which begins at `0x5000_0000_0000`.
pub const MAX_APPS: u32 = 63;

/// Maximum number of domains of an app.
pub const MAX_DOMAINS: u32 = 0x0010_0000;

/// Maximum length of the name of an app in bytes.
pub const NAME_MAX: usize = 64;

/// Maximum length of the key of a domain in bytes.
pub const KEY_MAX: usize = 64;
