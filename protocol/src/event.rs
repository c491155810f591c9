//! Events: what the host reports by itself.
//!
//! The driver keeps buffers for an [`Event`] each in the event queue. Without a buffer the event is
//! counted and dropped, unless its kind says otherwise; the incident is kept.

/// The kernel or a process of the guest wrote to the vault, and the second-level page table
/// stopped it.
pub const EVENT_SEALED_WRITE: u32 = 1;
/// The content of a sealed page is lost, and there is no mirror. `address` is that of the page, `frame`
/// held it. This event is never dropped.
pub const EVENT_DAMAGE: u32 = 2;

/// An event.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Event {
    /// One of `EVENT_*`.
    pub kind: u32,
    /// The vault frame, or [`crate::NONE`].
    pub frame: u32,
    /// Number of the incident, or 0.
    pub incident: u64,
    /// Guest virtual address of the access, or 0.
    pub address: u64,
    /// Guest instruction pointer, or 0.
    pub instruction: u64,
    /// The virtual CPU, or [`crate::NONE`].
    pub vcpu: u32,
    /// Reserved.
    pub reserved: u32,
}
