//! The virtio device: identity, features, queues, configuration space.

/// Virtio device ID. Not assigned by OASIS; chosen outside the range that is being assigned
/// (Virtio 1.2, section 5).
pub const DEVICE_ID: u32 = 0x5653;

/// Virtio vendor ID ("VSRS").
pub const VENDOR_ID: u32 = 0x5352_5356;

/// Version of everything in this crate. Both sides refuse any other.
pub const ABI_VERSION: u32 = 3;

/// Feature bit: the device has an event queue.
pub const FEATURE_EVENTS: u32 = 0;

/// Index of the queue with requests of the driver and the host's answers.
pub const QUEUE_CONTROL: u32 = 0;
/// Index of the queue with buffers for what the host reports by itself.
pub const QUEUE_EVENT: u32 = 1;
/// Number of queues.
pub const QUEUE_COUNT: u32 = 2;
/// Size of each queue in descriptors.
pub const QUEUE_SIZE: u32 = 64;

/// Shared memory region ID of the window (Virtio 1.2, 2.10 and 4.2.2).
pub const SHM_WINDOW: u32 = 0;

/// The device's configuration space; read-only for the driver.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct DeviceConfig {
    /// [`ABI_VERSION`] of the device.
    pub abi_version: u32,
    /// Frames in the window, [`crate::ZERO_FRAME`] included.
    pub window_frames: u32,
    /// Most frames that the driver may hold as granted (free in its pool, in drafts, or committed
    /// and not yet sealed).
    pub pool_frames: u32,
    /// Most records in one seal message.
    pub batch_records: u32,
    /// First tag of this boot; tags below it belong to earlier boots. Below 2^62.
    pub tag_base: u64,
    /// First incident number that the driver may use in this boot; odd. The driver counts on in
    /// steps of two, the host numbers its own incidents with even numbers.
    pub incident_base: u64,
}
