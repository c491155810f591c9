//! The VMSRS device: control queue, event queue and the window as a shared memory region.
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
use std::sync::Arc;

use bytemuck::bytes_of;
use thiserror::Error;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::GuestAddress;
use vmsrs_protocol::device::{
    DEVICE_ID, FEATURE_EVENTS, QUEUE_CONTROL, QUEUE_COUNT, QUEUE_EVENT, QUEUE_SIZE, SHM_WINDOW,
    VENDOR_ID,
};

use super::worker::Worker;
use super::{ActivateError, Activation, ShmRegion, VirtioDevice, copy_config};
use crate::engine::{ConfigError, Engine, EngineConfig};
use crate::engine_handle::EngineHandle;
use crate::window::{MprotectProtection, Window};

pub use scrubber::ScrubRate;

use cleanser::Cleanser;
use queues::Queues;
use scrubber::Scrubber;

/// Names the device in the log.
const NAME: &str = "vmsrs";

/// Why the device could not be made.
#[derive(Debug, Error)]
pub enum RecoveryDeviceError {
    /// The engine's limits do not fit the window.
    #[error(transparent)]
    Limits(#[from] ConfigError),
    /// The limits are for a window of another size.
    #[error("the engine's limits are for {expected} frames, the window has {actual}")]
    WindowSize {
        /// Frames in the limits.
        expected: u32,
        /// Frames in the window.
        actual: u32,
    },
    /// The host's operating system refused a thread or a descriptor.
    #[error("the host has no thread or descriptor left for the device")]
    Host(#[from] io::Error),
}

/// The VMSRS device.
#[derive(Debug)]
pub struct RecoveryDevice {
    handle: EngineHandle,
    shm: [ShmRegion; 1],
    running: Option<Worker>,
    /// Ends its thread when it is dropped.
    _cleanser: Cleanser,
    /// Ends its thread when it is dropped.
    _scrubber: Scrubber,
}

impl RecoveryDevice {
    /// Makes the device for `window`, which lies at `address` in the guest; `scrub` says how fast its
    /// sealed pages are checked.
    ///
    /// # Errors
    ///
    /// Fails when the limits do not fit this window, or when the operating system refuses a
    /// thread or a descriptor.
    pub fn new(
        config: EngineConfig,
        window: Arc<Window>,
        protection: MprotectProtection,
        address: GuestAddress,
        scrub: ScrubRate,
    ) -> Result<Self, RecoveryDeviceError> {
        if config.window_frames != window.frames() {
            return Err(RecoveryDeviceError::WindowSize {
                expected: config.window_frames,
                actual: window.frames(),
            });
        }
        let region = ShmRegion {
            // Shared memory region IDs have 8 bits; this one is 0.
            id: SHM_WINDOW,
            address,
            length: window.size(),
        };
        let handle = EngineHandle::new(Engine::new(config)?, protection, window)?;
        let cleanser = Cleanser::start(handle.clone())?;
        let scrubber = Scrubber::start(handle.clone(), scrub)?;
        Ok(Self {
            handle,
            shm: [region],
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
