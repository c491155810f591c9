//! Seal records: committed pages on their way from the pool to the vault.

/// Flag of a seal message: it is the last one of its batch.
pub const SEAL_LAST: u32 = 1;

/// A committed page.
///
/// The records of a *batch* are one consistent cut of the driver's state: all commits up to some moment,
/// each page once, in its newest version. A batch may be spread over several messages. It takes effect
/// as a whole when its last message has arrived, or not at all.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SealRecord {
    /// The app.
    pub app: u32,
    /// The domain of the page.
    pub domain: u32,
    /// The page.
    pub page: u32,
    /// Pool frame with the new version. The host copies it once, when the record arrives; the driver does
    /// not change it before the reply.
    pub pool_frame: u32,
    /// Vault frame of the version that this one replaces, or [`crate::NONE`] if the page was never
    /// sealed.
    pub vault_frame: u32,
    /// Reserved.
    pub reserved: u32,
}
