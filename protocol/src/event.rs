//! Events: what the host reports by itself. The driver keeps buffers of [`Event`]'s size in the
//! event queue; when there is none, the event is counted and dropped (the incident is kept)
//! unless its kind says otherwise.

/// The guest's kernel or a process wrote to a frame that it may not write; the second-level page
/// table stopped it.
pub const EVENT_SEALED_WRITE: u32 = 1;
/// Frames became free after a grant had been cut short; asking again is worth it.
pub const EVENT_FRAMES_FREE: u32 = 2;
/// The content of a sealed page is lost, and no mirror has it: `address` is the page's, `frame` the
/// frame that held it. An event of this kind is never dropped.
pub const EVENT_DAMAGE: u32 = 3;

/// One event.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Event {
    /// One of the `EVENT_` constants.
    pub kind: u32,
    /// The frame it is about, or [`crate::NONE`].
    pub frame: u32,
    /// The incident's number, or 0.
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
