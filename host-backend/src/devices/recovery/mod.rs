//! The VMSRS device: control queue, event queue, and pool and vault as shared memory regions.
//!
//! One thread serves the queues while the driver has the device running; the threads of the cleanser
//! and the scrubber live as long as the device, since there is work for them after a reset too.

mod chain;
mod cleanser;
mod control;
mod events;
mod queues;
mod scrubber;
#[cfg(test)]
mod tests;

use std::io;

use bytemuck::bytes_of;
use thiserror::Error;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::GuestAddress;
use vmsrs_protocol::device::{
    DEVICE_ID, FEATURE_EVENTS, QUEUE_CONTROL, QUEUE_COUNT, QUEUE_EVENT, QUEUE_SIZE, SHM_POOL,
    SHM_VAULT, VENDOR_ID,
};

use super::worker::Worker;
use super::{ActivateError, Activation, ShmRegion, VirtioDevice, copy_config};
use crate::engine::{ConfigError, Engine, EngineConfig};
use crate::engine_handle::EngineHandle;
use crate::regions::Regions;

pub use scrubber::ScrubRate;

use cleanser::Cleanser;
use queues::Queues;
use scrubber::Scrubber;

/// Names the device in the log.
const NAME: &str = "vmsrs";

/// Why the device could not be made.
#[derive(Debug, Error)]
pub enum RecoveryDeviceError {
    /// The engine's limits are inconsistent.
    #[error(transparent)]
    Limits(#[from] ConfigError),
    /// The limits are for regions of another size.
    #[error(
        "the engine's limits are for {expected:?} frames in pool and vault, not for {actual:?}"
    )]
    RegionSize {
        /// Frames of pool and vault in the limits.
        expected: (u32, u32),
        /// Frames of pool and vault.
        actual: (u32, u32),
    },
    /// The host's operating system refused a thread or a descriptor.
    #[error("the host has no thread or descriptor left for the device")]
    Host(#[from] io::Error),
}

/// Where the regions lie in the guest.
#[derive(Clone, Copy, Debug)]
pub struct RegionAddresses {
    /// The pool.
    pub pool: GuestAddress,
    /// The vault.
    pub vault: GuestAddress,
}

/// The VMSRS device.
#[derive(Debug)]
pub struct RecoveryDevice {
    handle: EngineHandle,
    shm: [ShmRegion; 2],
    running: Option<Worker>,
    /// Ends its thread when it is dropped.
    _cleanser: Cleanser,
    /// Ends its thread when it is dropped.
    _scrubber: Scrubber,
}

impl RecoveryDevice {
    /// Makes the device for `regions`, which lie at `addresses` in the guest; `scrub` says how fast
    /// sealed pages are checked.
    ///
    /// # Errors
    ///
    /// Fails when the limits do not fit these regions, or when the operating system refuses a
    /// thread or a descriptor.
    pub fn new(
        config: EngineConfig,
        regions: Regions,
        addresses: RegionAddresses,
        scrub: ScrubRate,
    ) -> Result<Self, RecoveryDeviceError> {
        let expected = (config.pool_frames, config.vault_frames);
        let actual = (regions.pool.frames(), regions.vault.frames());
        if expected != actual {
            return Err(RecoveryDeviceError::RegionSize { expected, actual });
        }
        let shm = [
            ShmRegion {
                id: SHM_POOL,
                address: addresses.pool,
                length: regions.pool.size(),
            },
            ShmRegion {
                id: SHM_VAULT,
                address: addresses.vault,
                length: regions.vault.size(),
            },
        ];
        let handle = EngineHandle::new(Engine::new(config)?, regions)?;
        let cleanser = Cleanser::start(handle.clone())?;
        let scrubber = Scrubber::start(handle.clone(), scrub)?;
        Ok(Self {
            handle,
            shm,
            running: None,
            _cleanser: cleanser,
            _scrubber: scrubber,
        })
    }

    /// The handle to the engine, for the rest of the VMM.
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }
}

impl VirtioDevice for RecoveryDevice {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn vendor_id(&self) -> u32 {
        VENDOR_ID
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << FEATURE_EVENTS
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE as u16; QUEUE_COUNT as usize]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(bytes_of(&self.handle.device_config()), offset, data);
    }

    fn shm_regions(&self) -> &[ShmRegion] {
        &self.shm
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let control = activation.take_queue(QUEUE_CONTROL as u16)?;
        let event = match activation.features & 1 << FEATURE_EVENTS {
            0 => None,
            _ => Some(activation.take_queue(QUEUE_EVENT as u16)?),
        };
        let Activation {
            memory, interrupt, ..
        } = activation;
        let queues = Queues::new(
            self.handle.clone(),
            control,
            event,
            memory.clone(),
            interrupt.clone(),
        )?;
        self.handle.driver_started();
        self.running = Some(Worker::start(NAME, memory, interrupt, queues)?);
        Ok(())
    }

    fn reset(&mut self) {
        if self.running.take().is_none() {
            return;
        }
        self.handle.reset();
    }
}

impl Drop for RecoveryDevice {
    fn drop(&mut self) {
        self.reset();
    }
}
