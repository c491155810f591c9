//! How a virtio device interrupts its driver: the reasons of the interrupt beside the line itself.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

use crate::vmm::irq::Interrupt;

/// A device's interrupt line with its InterruptStatus register (Virtio 1.2, 4.2.2). Clones are the
/// same line.
#[derive(Clone)]
pub struct DeviceInterrupt {
    shared: Arc<Shared>,
}

struct Shared {
    line: Box<dyn Interrupt>,
    /// The InterruptStatus register: why the line was raised, until the driver acknowledges it.
    status: AtomicU32,
    /// The device has met something that it can go on from only after a reset.
    needs_reset: AtomicBool,
}

impl DeviceInterrupt {
    /// Makes the interrupt of a device whose line is `line`.
    pub fn new(line: impl Interrupt + 'static) -> Self {
        Self {
            shared: Arc::new(Shared {
                line: Box::new(line),
                status: AtomicU32::new(0),
                needs_reset: AtomicBool::new(false),
            }),
        }
    }

    /// Tells the driver that the device has used buffers of a queue.
    pub fn queue_used(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// Tells the driver that the configuration space has changed.
    pub fn config_changed(&self) {
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// Tells the driver that the device has stopped and needs a reset (Virtio 1.2, 2.1.2): for a
    /// queue whose rings are invalid.
    pub fn needs_reset(&self) {
        self.shared.needs_reset.store(true, Ordering::Release);
        self.config_changed();
    }

    /// Reports broken memory in the guest's RAM, which ends the guest.
    pub(super) fn machine_check(&self) {
        self.shared.line.machine_check();
    }

    /// The InterruptStatus register.
    pub(super) fn status(&self) -> u32 {
        self.shared.status.load(Ordering::Acquire)
    }

    /// Clears the acknowledged bits of the InterruptStatus register.
    pub(super) fn acknowledge(&self, bits: u32) {
        self.shared.status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Whether the device has asked for a reset.
    pub(super) fn is_reset_needed(&self) -> bool {
        self.shared.needs_reset.load(Ordering::Acquire)
    }

    /// Forgets everything, as a device reset does.
    pub(super) fn clear(&self) {
        self.shared.status.store(0, Ordering::Release);
        self.shared.needs_reset.store(false, Ordering::Release);
    }

    fn raise(&self, reason: u32) {
        self.shared.status.fetch_or(reason, Ordering::AcqRel);
        if let Err(error) = self.shared.line.trigger() {
            // An eventfd refuses only when its counter is full, and then an interrupt is pending.
            log::debug!("interrupt not raised: {error}");
        }
    }
}

impl fmt::Debug for DeviceInterrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceInterrupt")
            .field("status", &self.status())
            .field("needs_reset", &self.is_reset_needed())
            .finish_non_exhaustive()
    }
}
