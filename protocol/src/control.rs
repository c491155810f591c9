//! Messages on the control queue.
//!
//! A message is one descriptor chain: device-readable bytes with a [`ControlHeader`] and its payload,
//! then device-writable bytes for a [`ReplyHeader`] and the payload of the reply. The driver waits for
//! a reply with a timeout; a host that misses it is broken.

use crate::{EXTENT_UNIT_PAGES, KEY_MAX, NAME_MAX};

/// Finds or creates an app by name: [`OpenApp`], [`AppReply`].
pub const MESSAGE_OPEN_APP: u32 = 1;
/// Finds or creates a domain of an app by key: [`OpenDomain`], [`DomainReply`].
pub const MESSAGE_OPEN_DOMAIN: u32 = 2;
/// Lists the extents of a domain by index: [`ListDomain`], [`ListReply`] and [`Extent`]s.
pub const MESSAGE_LIST_EXTENTS: u32 = 3;
/// Lists the sealed pages of a domain by page: [`ListDomain`], [`ListReply`] and [`PageFrame`]s.
pub const MESSAGE_LIST_PAGES: u32 = 4;
/// Finds or creates an extent by index: [`AddExtent`], [`ExtentReply`].
pub const MESSAGE_ADD_EXTENT: u32 = 5;
/// Seals committed pages: [`SealRequest`] and [`crate::seal::SealRecord`]s, [`SealReply`] and a vault
/// frame number of 32 bits for each record.
pub const MESSAGE_SEAL: u32 = 6;
/// Reports a failed request: [`crate::incident::IncidentReport`] and
/// [`crate::incident::DroppedDraft`]s, no payload in the reply. The host copies what it keeps of the
/// drafts.
pub const MESSAGE_INCIDENT: u32 = 7;
/// Adds evidence to an incident that was reported before: [`crate::incident::Evidence`] and its bytes,
/// no payload in the reply. Dropped if the incident is not kept any more.
pub const MESSAGE_EVIDENCE: u32 = 8;
/// Several messages of the last two kinds, one after the other, no payload in the reply. Each has a
/// [`ControlHeader`] of its own, and its payload is padded to a multiple of 8 bytes. The first one that is
/// refused ends the message with its status; those before it count. At most [`PARTS_MAX`].
pub const MESSAGE_REPORTS: u32 = 9;

/// Names domains that are deleted with the batch that arrives: [`DeleteRequest`] and [`DeleteRecord`]s, no payload in the
/// reply. They are part of the batch like the pages of a [`MESSAGE_SEAL`]: they take effect when its last message has
/// arrived, after its pages, or not at all. A refusal drops the whole batch.
pub const MESSAGE_DELETE: u32 = 10;

/// Maximum number of messages in a [`MESSAGE_REPORTS`]: the host does nothing else meanwhile.
pub const PARTS_MAX: u32 = 32;

/// Done.
pub const STATUS_OK: u32 = 0;
/// Malformed message: too short, wrong length, or a field out of range.
pub const STATUS_MALFORMED: u32 = 1;
/// Unknown kind of message.
pub const STATUS_UNKNOWN: u32 = 2;
/// The vault or a table of the host is full.
pub const STATUS_NO_SPACE: u32 = 3;
/// No such app, domain or extent.
pub const STATUS_NOT_FOUND: u32 = 4;
/// The page does not belong to the domain.
pub const STATUS_NOT_OWNER: u32 = 5;
/// The vault frame of a record is not the sealed frame of its page.
pub const STATUS_STALE: u32 = 6;
/// The operating system of the host refused.
pub const STATUS_HOST_ERROR: u32 = 7;

/// Header of every message to the host.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ControlHeader {
    /// One of `MESSAGE_*`.
    pub kind: u32,
    /// Bytes of payload after this header.
    pub length: u32,
}

/// Header of every reply.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ReplyHeader {
    /// One of `STATUS_*`.
    pub status: u32,
    /// Bytes of payload after this header; 0 unless the status is [`STATUS_OK`].
    pub length: u32,
}

/// Payload of [`MESSAGE_OPEN_APP`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct OpenApp {
    /// Name of at least one byte, padded with zeros.
    pub name: [u8; NAME_MAX],
}

/// Reply to [`MESSAGE_OPEN_APP`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AppReply {
    /// Number of the app, below [`crate::MAX_APPS`]; it determines the address range.
    pub app: u32,
    /// Number of its domains.
    pub domains: u32,
}

/// Payload of [`MESSAGE_OPEN_DOMAIN`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct OpenDomain {
    /// The app.
    pub app: u32,
    /// Length of the key, 1 to [`KEY_MAX`].
    pub key_length: u32,
    /// The key, padded with zeros.
    pub key: [u8; KEY_MAX],
    /// [`DOMAIN_MIRROR`] or 0. A domain that has a mirror keeps it either way.
    pub flags: u32,
    /// Number of pages of its first extent, as in [`AddExtent::pages`], if it has none yet; 0 to make none.
    pub pages: u32,
    /// The number of a deleted domain that a new one may have, or [`crate::NONE`]. After a reset of the device all may be had.
    pub reuse: u32,
}

/// Flag of a domain: the host keeps a second copy of each sealed page, which takes as much of the
/// vault as the page.
pub const DOMAIN_MIRROR: u32 = 1;
/// Flag of a domain: content of a sealed page is lost ([`crate::DAMAGED_FRAME`]).
pub const DOMAIN_DAMAGED: u32 = 2;

/// An extent: consecutive pages of one domain.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Extent {
    /// First page, a multiple of [`crate::EXTENT_UNIT_PAGES`].
    pub page: u32,
    /// Number of pages, a multiple of [`crate::EXTENT_UNIT_PAGES`] and at most
    /// [`crate::EXTENT_MAX_PAGES`].
    pub pages: u32,
}

/// Reply to [`MESSAGE_OPEN_DOMAIN`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct DomainReply {
    /// Number of the domain in its app, below [`crate::MAX_DOMAINS`].
    pub domain: u32,
    /// Number of its extents.
    pub extents: u32,
    /// Number of its sealed pages.
    pub pages: u32,
    /// Flags of the domain: [`DOMAIN_MIRROR`], [`DOMAIN_DAMAGED`].
    pub flags: u32,
    /// Its first extent; without pages if it has none.
    pub first: Extent,
    /// The frames of the first pages of that extent as in [`PageFrame::frame`], [`crate::NONE`] without one: most
    /// domains have no more, so that nothing needs to be listed.
    pub frames: [u32; EXTENT_UNIT_PAGES as usize],
}

/// Payload of [`MESSAGE_LIST_EXTENTS`] and [`MESSAGE_LIST_PAGES`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ListDomain {
    /// The app.
    pub app: u32,
    /// The domain.
    pub domain: u32,
    /// First entry: the index of an extent, or a page.
    pub first: u32,
    /// Maximum number of entries; the host sends fewer if the reply has no room for them.
    pub limit: u32,
}

/// Start of a reply with a list; the entries follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ListReply {
    /// Number of entries that follow.
    pub count: u32,
    /// `first` for the next request, or [`crate::NONE`] at the end of the list.
    pub next: u32,
}

/// A page and the frame with its sealed content.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PageFrame {
    /// The page.
    pub page: u32,
    /// The vault frame, or [`crate::DAMAGED_FRAME`] if its content is lost.
    pub frame: u32,
}

/// Payload of [`MESSAGE_ADD_EXTENT`].
///
/// Extents of a domain are numbered from 0. An extent that exists is returned unchanged, whatever its
/// size: a request that grew a domain and failed leaves an extent that the next growth uses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AddExtent {
    /// The app.
    pub app: u32,
    /// The domain.
    pub domain: u32,
    /// Index of the extent, at most the number of extents of the domain.
    pub index: u32,
    /// Number of pages, 1 to [`crate::EXTENT_MAX_PAGES`]; rounded up to whole units.
    pub pages: u32,
}

/// Payload of [`MESSAGE_SEAL`]; the seal records follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SealRequest {
    /// Number of records that follow, at most [`crate::device::DeviceConfig::batch_records`].
    pub records: u32,
    /// [`crate::seal::SEAL_LAST`] or 0.
    pub flags: u32,
}

/// Start of the reply to [`MESSAGE_SEAL`].
///
/// The vault frames of the message's records follow, in their order: 32 bits each,
/// [`crate::DAMAGED_FRAME`] if the pool frame could not be read. They hold the new versions once the
/// last message of the batch has been accepted. A refusal drops the whole batch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SealReply {
    /// Number of vault frames that follow: that of the records, or 0 after a refusal.
    pub sealed: u32,
    /// [`STATUS_OK`], or why the batch was refused.
    pub refusal: u32,
}

/// Payload of [`MESSAGE_DELETE`]; the records follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct DeleteRequest {
    /// Number of records that follow.
    pub records: u32,
    /// Reserved.
    pub reserved: u32,
}

/// A domain that is deleted, or cleared, which no batch does twice.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct DeleteRecord {
    /// The app.
    pub app: u32,
    /// The domain.
    pub domain: u32,
    /// How many of its first extents stay; [`crate::NONE`] if the domain does not. All others go back with their pages.
    pub extents: u32,
    /// Reserved.
    pub reserved: u32,
}

/// Reply to [`MESSAGE_ADD_EXTENT`].
pub type ExtentReply = Extent;

/// Maximum size of a message or reply, headers included. The host rejects longer chains unread.
pub const MESSAGE_BYTES_MAX: u32 = 0x0001_0000;
