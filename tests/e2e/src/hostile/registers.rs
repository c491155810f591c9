//! The register layout of virtio-mmio.

/// Register offsets (Virtio 1.2, 4.2.2).
pub mod register {
    /// Driver features, the half chosen by [`DRIVER_FEATURES_SEL`].
    pub const DRIVER_FEATURES: u64 = 0x020;
    /// Chooses the half of the driver features: 0 for bits 0 to 31, 1 for bits 32 to 63.
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    /// Selects a queue.
    pub const QUEUE_SEL: u64 = 0x030;
    /// Size of the selected queue.
    pub const QUEUE_NUM: u64 = 0x038;
    /// Whether the selected queue is ready.
    pub const QUEUE_READY: u64 = 0x044;
    /// Notifies a queue.
    pub const QUEUE_NOTIFY: u64 = 0x050;
    /// Device status.
    pub const STATUS: u64 = 0x070;
    /// Address of the selected queue's descriptor table, low half; the high half follows.
    pub const QUEUE_DESC: u64 = 0x080;
    /// Address of its available ring, low half; the high half follows.
    pub const QUEUE_AVAIL: u64 = 0x090;
    /// Address of its used ring, low half; the high half follows.
    pub const QUEUE_USED: u64 = 0x0a0;
    /// Selects a shared memory region.
    pub const SHM_SEL: u64 = 0x0ac;
    /// Length of the selected region, low half; the high half follows.
    pub const SHM_LEN: u64 = 0x0b0;
    /// Address of the selected region, low half; the high half follows.
    pub const SHM_BASE: u64 = 0x0b8;
    /// The configuration space.
    pub const CONFIG: u64 = 0x100;
}

/// Values of the status register (Virtio 1.2, 2.1), each including the bits set before it.
pub mod status {
    /// ACKNOWLEDGE and DRIVER.
    pub const DRIVER: u32 = 3;
    /// Features have been negotiated.
    pub const FEATURES_OK: u32 = 11;
    /// DRIVER_OK: the device is running.
    pub const RUNNING: u32 = 15;
    /// The bit by which the device asks for a reset.
    pub const NEEDS_RESET: u32 = 0x40;
}
