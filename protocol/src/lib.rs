//! What the host, the driver in the guest and the guest library say to each other.
//!
//! Every structure that crosses a border (virtqueue, configuration space, ioctl, memory shared with
//! the driver) is laid out here and nowhere else. The C header of the driver is generated from this
//! crate, so a layout has one source.
//!
//! # Conventions
//!
//! * Byte order is little-endian everywhere: VMSRS runs on x86-64 alone, and virtio 1.x is
//!   little-endian (Virtio 1.2, 1.4).
//! * Every structure is `repr(C)` with explicit padding, so it is [`bytemuck::Pod`]: any bit pattern
//!   is a value, and whoever receives one from an untrusted side checks it.
//! * Frames and pages are [`PAGE_SIZE`] bytes. A frame is named by its index in the window, a page
//!   by its index in its app's address range.
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

/// Bytes in a frame and in a page.
pub const PAGE_SIZE: u32 = 4096;

/// Number of the frame that is all zeros for ever: the content of every page that was never
/// committed. It is sealed from the start and never granted.
pub const ZERO_FRAME: u32 = 0;

/// "No frame", "no page" or "no domain", where a field of that kind may be empty.
pub const NONE: u32 = 0xffff_ffff;

/// In a list of sealed pages: the page's content is lost. No window has a frame of this number.
pub const DAMAGED_FRAME: u32 = 0xffff_fffe;

/// Pages of a domain come in extents whose length is a multiple of this many pages and whose first
/// page is a multiple of it too, so that page → domain is one look-up per unit.
pub const EXTENT_UNIT_PAGES: u32 = 4;

/// Most pages in one extent (4 MiB).
pub const EXTENT_MAX_PAGES: u32 = 1024;

/// Address of the first app's first page, in every process that opens it. App `n` lies
/// `n * APP_PAGES * PAGE_SIZE` bytes above.
pub const APP_BASE: u64 = 0x1000_0000_0000;

/// Pages in an app's address range (1 TiB).
pub const APP_PAGES: u32 = 0x1000_0000;

/// Most apps in one virtual machine; keeps every app's range below the addresses that Linux gives
/// to programs, stacks and libraries.
pub const MAX_APPS: u32 = 64;

/// Most domains of one app.
pub const MAX_DOMAINS: u32 = 0x0010_0000;

/// Longest app name in bytes.
pub const NAME_MAX: usize = 64;

/// Longest domain key in bytes.
pub const KEY_MAX: usize = 64;

/// A run of consecutive frames.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct FrameRun {
    /// First frame.
    pub start: u32,
    /// Number of frames, at least one.
    pub count: u32,
}
