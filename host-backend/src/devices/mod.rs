//! Virtio devices: what a device is to its transport, and what it gets when the driver starts it.
//!
//! A device knows its identity, its features, its configuration space and its queues' work. The
//! transport ([`mmio`]) knows registers and the life cycle, and hands the queues over by value:
//! between [`VirtioDevice::activate`] and [`VirtioDevice::reset`] they belong to the device alone,
//! so a queue cannot be used after a reset.

use thiserror::Error;
use virtio_queue::Queue;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

mod interrupt;
pub mod mmio;
pub mod net;
pub mod recovery;
mod used;
pub mod vhost_user;
mod worker;

pub use interrupt::DeviceInterrupt;

/// A shared memory region of a device (Virtio 1.2, 2.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShmRegion {
    /// The region's number, chosen by the device type.
    pub id: u32,
    /// Guest physical address of its first byte.
    pub address: GuestAddress,
    /// Length in bytes.
    pub length: u64,
}

/// A queue that the driver has made ready.
#[derive(Debug)]
pub struct ActiveQueue {
    /// The queue's number.
    pub index: u16,
    /// The queue; its addresses and size have been checked against guest memory.
    pub queue: Queue,
    /// Readable when the driver has put buffers into the queue. Non-blocking. It can be readable
    /// without new buffers.
    pub kick: EventFd,
}

/// Everything a device works with while the driver has it running.
#[derive(Debug)]
pub struct Activation {
    /// Guest RAM, the only memory a device may read or write for the driver. Shared memory regions
    /// are not part of it, so no descriptor of the driver can name a frame.
    pub memory: GuestMemoryMmap,
    /// The queues that the driver has made ready, in order of their number; fewer than the device
    /// has if the driver does not use them all.
    pub queues: Vec<ActiveQueue>,
    /// How to interrupt the driver.
    pub interrupt: DeviceInterrupt,
    /// The features that both sides accepted, as a bit mask.
    pub features: u64,
}

impl Activation {
    /// Takes the queue with number `index` out.
    ///
    /// # Errors
    ///
    /// Fails when the driver did not make that queue ready, or when it was taken already.
    pub fn take_queue(&mut self, index: u16) -> Result<ActiveQueue, ActivateError> {
        let position = self
            .queues
            .iter()
            .position(|queue| queue.index == index)
            .ok_or(ActivateError::MissingQueue(index))?;
        Ok(self.queues.remove(position))
    }
}

/// Why a device could not start its work.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// The driver did not set up a queue that the device cannot work without.
    #[error("the driver started the device without its queue {0}")]
    MissingQueue(u16),
    /// The host's operating system refused something: a thread, a descriptor.
    #[error("the host has no thread or descriptor left for the device")]
    Host(#[from] std::io::Error),
}

/// A virtio device, seen from its transport.
///
/// Every call comes from a vCPU thread with the transport's lock held: none may block for long.
/// The work on queues belongs into threads of the device's own.
pub trait VirtioDevice: Send {
    /// Virtio device ID (Virtio 1.2, section 5).
    fn device_id(&self) -> u32;

    /// Virtio vendor ID.
    fn vendor_id(&self) -> u32;

    /// The features the device offers, as a bit mask; `VIRTIO_F_VERSION_1` must be among them.
    fn features(&self) -> u64;

    /// The largest size of each queue in descriptors: powers of two, at most 32,768.
    fn queue_max_sizes(&self) -> &[u16];

    /// Fills `data` with the bytes of the configuration space from `offset` on. `data` is all
    /// zeros on entry; what lies beyond the end of the configuration space stays so. See
    /// [`copy_config`].
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Takes bytes that the driver writes into the configuration space. A device without writable
    /// fields ignores them.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Changes whenever the configuration space changes while the driver may be reading it.
    fn config_generation(&self) -> u32 {
        0
    }

    /// The device's shared memory regions.
    fn shm_regions(&self) -> &[ShmRegion] {
        &[]
    }

    /// Starts the device's work.
    ///
    /// # Errors
    ///
    /// On an error the device is as if `activate` had not been called, and the transport tells
    /// the driver that the device needs a reset.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Ends the device's work: stops its threads and drops the activation. When it returns,
    /// nothing of the device touches guest memory or the interrupt line any more. Does nothing on
    /// a device that is not active.
    fn reset(&mut self);
}

/// Copies the part of a configuration space that `offset` and the length of `data` name; what lies
/// beyond its end is left alone. For [`VirtioDevice::read_config`].
pub fn copy_config(config: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|start| config.get(start..))
        .unwrap_or_default();
    let count = rest.len().min(data.len());
    data[..count].copy_from_slice(&rest[..count]);
}

#[cfg(test)]
mod tests {
    use super::copy_config;

    #[test]
    fn config_read_past_the_end_leaves_the_rest() {
        let config = [1, 2, 3];
        for (offset, expected) in [(0, [1, 2]), (2, [3, 0]), (3, [0, 0]), (u64::MAX, [0, 0])] {
            let mut data = [0; 2];
            copy_config(&config, offset, &mut data);
            assert_eq!(data, expected, "offset {offset}");
        }
    }
}
