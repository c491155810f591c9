//! Seal records: one committed page each.

/// Flag of the last record of a commit.
pub const SEAL_LAST: u32 = 1;

/// Most pages in one commit that the host keeps while its records arrive.
pub const COMMIT_PAGES_MAX: u32 = 0x0001_0000;

/// One page of a commit.
///
/// Records of a commit follow each other, carry the same tag, and the last one has
/// [`SEAL_LAST`]. A commit may be spread over several messages.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SealRecord {
    /// Tag of the request that committed.
    pub tag: u64,
    /// The app.
    pub app: u32,
    /// The domain that the page belongs to.
    pub domain: u32,
    /// The page.
    pub page: u32,
    /// The frame that held the page before, or [`crate::NONE`] if it was never committed.
    pub old_frame: u32,
    /// The granted frame with the new content.
    pub new_frame: u32,
    /// [`SEAL_LAST`] or 0.
    pub flags: u32,
}
