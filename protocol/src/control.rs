//! Messages on the control queue.
//!
//! A message is one descriptor chain: device-readable bytes with a [`ControlHeader`] and a payload
//! of `length` bytes, then device-writable bytes where the host puts a [`ReplyHeader`] and the
//! reply's payload. The driver waits for a reply with a timeout and treats a host that misses it as
//! broken.

use crate::{FrameRun, KEY_MAX, NAME_MAX};

/// [`OpenApp`] → [`AppReply`]: finds or makes an app by name.
pub const MESSAGE_OPEN_APP: u32 = 1;
/// [`OpenDomain`] → [`DomainReply`]: finds or makes a domain of an app by key.
pub const MESSAGE_OPEN_DOMAIN: u32 = 2;
/// [`ListDomain`] → [`ListReply`] and [`Extent`]s: the domain's extents in order of their index.
pub const MESSAGE_LIST_EXTENTS: u32 = 3;
/// [`ListDomain`] → [`ListReply`] and [`PageFrame`]s: the domain's sealed pages in order of page.
pub const MESSAGE_LIST_PAGES: u32 = 4;
/// [`AddExtent`] → [`ExtentReply`]: the extent with that index, made if it does not exist.
pub const MESSAGE_ADD_EXTENT: u32 = 5;
/// [`GrantRequest`] → [`GrantReply`] and [`FrameRun`]s: frames for the driver's pool.
pub const MESSAGE_GRANT: u32 = 6;
/// [`SealRequest`] and [`crate::seal::SealRecord`]s → [`SealReply`] and [`FrameRun`]s: committed
/// pages become the authority; new frames come in exchange for the retired ones.
pub const MESSAGE_SEAL: u32 = 7;
/// [`crate::incident::IncidentReport`] and [`crate::incident::DroppedDraft`]s → [`GrantReply`] and
/// [`FrameRun`]s: a request failed; its drafts are evidence, then cleansed.
pub const MESSAGE_INCIDENT: u32 = 8;
/// [`DiscardRequest`] and frame numbers (`u32` each) → [`GrantReply`] and [`FrameRun`]s: drafts
/// dropped without an error; cleansed.
pub const MESSAGE_DISCARD: u32 = 9;
/// [`crate::incident::Evidence`] and its bytes → nothing: belongs to an incident that was reported
/// before. That of an incident which is not kept is dropped.
pub const MESSAGE_EVIDENCE: u32 = 10;

/// The message was carried out.
pub const STATUS_OK: u32 = 0;
/// The bytes are no message: too short, wrong length, a field out of its range.
pub const STATUS_MALFORMED: u32 = 1;
/// The kind of message is not known.
pub const STATUS_UNKNOWN: u32 = 2;
/// The window, or a table of the host, is full.
pub const STATUS_NO_SPACE: u32 = 3;
/// No such app, domain or extent.
pub const STATUS_NOT_FOUND: u32 = 4;
/// A frame that is not granted, or a page that is not the domain's.
pub const STATUS_NOT_OWNER: u32 = 5;
/// The record's old frame is not the page's sealed frame.
pub const STATUS_STALE: u32 = 6;
/// The host could not carry the message out (its own operating system refused).
pub const STATUS_HOST_ERROR: u32 = 7;

/// Starts every message to the host.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ControlHeader {
    /// One of the `MESSAGE_` constants.
    pub kind: u32,
    /// Bytes of payload behind this header.
    pub length: u32,
}

/// Starts every reply.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ReplyHeader {
    /// One of the `STATUS_` constants.
    pub status: u32,
    /// Bytes of payload behind this header; 0 unless the status is [`STATUS_OK`].
    pub length: u32,
}

/// Payload of [`MESSAGE_OPEN_APP`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct OpenApp {
    /// Name, padded with zero bytes; at least one byte.
    pub name: [u8; NAME_MAX],
}

/// Reply to [`MESSAGE_OPEN_APP`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AppReply {
    /// The app's number, below [`crate::MAX_APPS`]. It fixes the address range.
    pub app: u32,
    /// Domains that exist already.
    pub domains: u32,
}

/// Payload of [`MESSAGE_OPEN_DOMAIN`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct OpenDomain {
    /// The app.
    pub app: u32,
    /// Bytes of `key` in use, 1 to [`KEY_MAX`].
    pub key_length: u32,
    /// The key; bytes behind `key_length` are zero.
    pub key: [u8; KEY_MAX],
    /// [`DOMAIN_MIRROR`] or 0. A domain that has a mirror keeps it, whatever this says.
    pub flags: u32,
}

/// Flag of a domain: the host keeps a second copy of each sealed page. The copies take room of the
/// window, as much as the pages.
pub const DOMAIN_MIRROR: u32 = 1;
/// Flag of a domain: the content of some sealed page is lost ([`crate::DAMAGED_FRAME`]).
pub const DOMAIN_DAMAGED: u32 = 2;

/// Reply to [`MESSAGE_OPEN_DOMAIN`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct DomainReply {
    /// The domain's number in its app, below [`crate::MAX_DOMAINS`].
    pub domain: u32,
    /// Extents it has; 0 for a new one.
    pub extents: u32,
    /// Sealed pages it has.
    pub pages: u32,
    /// [`DOMAIN_MIRROR`] and [`DOMAIN_DAMAGED`], as they hold.
    pub flags: u32,
}

/// Payload of [`MESSAGE_LIST_EXTENTS`] and [`MESSAGE_LIST_PAGES`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ListDomain {
    /// The app.
    pub app: u32,
    /// The domain.
    pub domain: u32,
    /// First entry wanted: an extent's index, or a page.
    pub first: u32,
    /// Most entries wanted; the host gives fewer when the reply has no room for them.
    pub limit: u32,
}

/// Starts a reply with a list; the entries follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ListReply {
    /// Entries that follow.
    pub count: u32,
    /// `first` of the next request, or [`crate::NONE`] at the end of the list.
    pub next: u32,
}

/// An extent: consecutive pages that belong to one domain.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Extent {
    /// First page; a multiple of [`crate::EXTENT_UNIT_PAGES`].
    pub page: u32,
    /// Pages; a multiple of [`crate::EXTENT_UNIT_PAGES`], at most [`crate::EXTENT_MAX_PAGES`].
    pub pages: u32,
}

/// A page and the frame with its sealed content.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PageFrame {
    /// The page.
    pub page: u32,
    /// The frame, or [`crate::DAMAGED_FRAME`] when its content is lost.
    pub frame: u32,
}

/// Payload of [`MESSAGE_ADD_EXTENT`].
///
/// Extents of a domain are numbered from 0. Asking again for one that exists returns it unchanged,
/// whatever `pages` says: a request that grew a domain and failed leaves an extent that the next
/// growth finds again.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AddExtent {
    /// The app.
    pub app: u32,
    /// The domain.
    pub domain: u32,
    /// Index of the extent: at most the number of extents that the domain has.
    pub index: u32,
    /// Pages wanted, 1 to [`crate::EXTENT_MAX_PAGES`]; rounded up to whole units.
    pub pages: u32,
}

/// Payload of [`MESSAGE_GRANT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct GrantRequest {
    /// Frames wanted. The host grants fewer when the pool's limit or the free frames say so.
    pub frames: u32,
    /// Reserved.
    pub reserved: u32,
}

/// Starts a reply that grants frames; the runs follow. Granted frames are all zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct GrantReply {
    /// [`FrameRun`]s that follow.
    pub runs: u32,
    /// Reserved.
    pub reserved: u32,
}

/// Payload of [`MESSAGE_SEAL`]; `records` seal records follow it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SealRequest {
    /// Records that follow; at most [`crate::device::DeviceConfig::batch_records`].
    pub records: u32,
    /// Reserved.
    pub reserved: u32,
}

/// Starts the reply to [`MESSAGE_SEAL`]; the runs of granted frames follow.
///
/// A commit is sealed whole or not at all. The host stops at the first commit that it refuses:
/// `sealed` says how many records before it were taken over, `refusal` why it was refused.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SealReply {
    /// Records taken over: sealed, or kept until the rest of their commit arrives.
    pub sealed: u32,
    /// [`STATUS_OK`], or the reason why the commit after `sealed` records was refused.
    pub refusal: u32,
    /// [`FrameRun`]s that follow.
    pub runs: u32,
    /// Reserved.
    pub reserved: u32,
}

/// Payload of [`MESSAGE_DISCARD`]; `frames` frame numbers of 4 bytes follow it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct DiscardRequest {
    /// Frame numbers that follow.
    pub frames: u32,
    /// Reserved.
    pub reserved: u32,
}

/// Reply to [`MESSAGE_ADD_EXTENT`].
pub type ExtentReply = Extent;

/// Most [`FrameRun`]s in one reply.
pub const REPLY_RUNS_MAX: usize = 64;

/// Bytes that a reply's buffer must hold for [`SealReply`] or [`GrantReply`] with all runs.
pub const GRANT_REPLY_BYTES: usize = core::mem::size_of::<ReplyHeader>()
    + core::mem::size_of::<SealReply>()
    + REPLY_RUNS_MAX * core::mem::size_of::<FrameRun>();

/// Largest message or reply in bytes, headers included; the host refuses longer chains unread.
pub const MESSAGE_BYTES_MAX: u32 = 0x0001_0000;
