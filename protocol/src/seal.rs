//! Seal records: a committed page each.

/// Flag of the last record of a commit.
pub const SEAL_LAST: u32 = 1;

/// Maximum number of pages in a commit.
pub const COMMIT_PAGES_MAX: u32 = 0x0001_0000;

/// A committed page.
///
/// The records of a commit are consecutive and have the same tag; the last one has [`SEAL_LAST`]. A
/// commit may be spread over several messages.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SealRecord {
    /// Tag of the request that committed.
    pub tag: u64,
    /// The app.
    pub app: u32,
    /// The domain of the page.
    pub domain: u32,
    /// The page.
    pub page: u32,
    /// Frame of the previous version, or [`crate::NONE`] if the page was never committed.
    pub old_frame: u32,
    /// The granted frame with the new version.
    pub new_frame: u32,
    /// [`SEAL_LAST`] or 0.
    pub flags: u32,
}
