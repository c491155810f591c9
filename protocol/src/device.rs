//! The virtio device: identity, features, queues, configuration space.

/// Virtio device ID. Not assigned by OASIS; outside the assigned range (Virtio 1.2, section 5).
pub const DEVICE_ID: u32 = 0x5653;

/// Virtio vendor ID ("VSRS").
pub const VENDOR_ID: u32 = 0x5352_5356;

/// Version of the whole protocol. Both sides reject any other.
pub const ABI_VERSION: u32 = 12;

/// Feature bit: the device has an event queue.
pub const FEATURE_EVENTS: u32 = 0;

/// Index of the queue for requests of the driver.
pub const QUEUE_CONTROL: u32 = 0;
/// Index of the queue for events of the host.
pub const QUEUE_EVENT: u32 = 1;
/// Number of queues.
pub const QUEUE_COUNT: u32 = 2;
/// Size of each queue in descriptors.
pub const QUEUE_SIZE: u32 = 64;

/// Shared memory region ID of the pool, which the guest can write (Virtio 1.2, 2.10 and 4.2.2).
pub const SHM_POOL: u32 = 0;
/// Shared memory region ID of the vault, which the guest can only read.
pub const SHM_VAULT: u32 = 1;

/// Configuration space of the device; read-only for the driver.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct DeviceConfig {
    /// [`ABI_VERSION`] of the device.
    pub abi_version: u32,
    /// Number of frames in the vault, [`crate::ZERO_FRAME`] included.
    pub vault_frames: u32,
    /// Number of frames in the pool. All of them are the driver's: free, in drafts, or committed and not
    /// sealed yet.
    pub pool_frames: u32,
    /// Maximum number of records in a seal message.
    pub batch_records: u32,
    /// First tag of this boot, below 2^62; smaller tags belong to earlier boots.
    pub tag_base: u64,
    /// First incident number of the driver in this boot. The driver uses odd numbers, the host even
    /// ones.
    pub incident_base: u64,
}
