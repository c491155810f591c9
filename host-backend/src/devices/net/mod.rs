//! The network card: virtio-net (Virtio 1.2, 5.1) with one receive and one transmit queue, on a
//! tap interface.
//!
//! No offloads are offered, so virtio-net headers carry no information, and neither side trusts
//! lengths or checksums of the other's header.

mod counters;
mod queues;
mod tap;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MAC;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

pub use self::counters::{NetCounters, NetCounts};
use self::queues::Queues;
pub use self::tap::{TapAddress, TapConfig, TapConfigError, TapError, open as open_tap};
use super::worker::Worker;
use super::{ActivateError, Activation, VirtioDevice, copy_config};

/// Names the device in the log.
const NAME: &str = "net";

/// The queue with empty buffers for frames to the guest (Virtio 1.2, 5.1.2).
const QUEUE_RECEIVE: u16 = 0;
/// The queue with frames from the guest.
const QUEUE_TRANSMIT: u16 = 1;
/// Size of both queues in descriptors.
const QUEUE_SIZE: u16 = 256;

/// Bytes of a virtio-net header: `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;
/// Largest frame in bytes, without its virtio-net header: the largest MTU that Linux allows, an
/// Ethernet header and a VLAN tag.
const FRAME_MAX: usize = 65_535 + 14 + 4;

/// An Ethernet address.
pub type MacAddress = [u8; 6];

/// The network card.
#[derive(Debug)]
pub struct Net {
    tap: File,
    mac: MacAddress,
    counters: Arc<NetCounters>,
    running: Option<Worker>,
}

impl Net {
    /// Makes a network card with the address `mac` on `tap`.
    ///
    /// `tap` is non-blocking; each read returns one frame and each write sends one, after a
    /// virtio-net header of 12 bytes. [`open_tap`] returns such a file.
    pub fn new(tap: File, mac: MacAddress) -> Self {
        Self {
            tap,
            mac,
            counters: Arc::default(),
            running: None,
        }
    }

    /// What went through the card so far.
    pub fn counters(&self) -> Arc<NetCounters> {
        self.counters.clone()
    }
}

/// An address for the guest's network card on the tap interface `tap`: locally
/// administered, and the same in every run, so that a restarted guest is the same host to its neighbours.
pub fn mac_for(tap: &str) -> MacAddress {
    // FNV-1a: short, and different names give different addresses but for one in 2^32.
    let hash = tap.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let [a, b, c, d] = hash.to_be_bytes();
    [0x02, 0x56, a, b, c, d]
}

impl VirtioDevice for Net {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn vendor_id(&self) -> u32 {
        vmsrs_protocol::device::VENDOR_ID
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_NET_F_MAC
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.mac, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let receive = activation.take_queue(QUEUE_RECEIVE)?;
        let transmit = activation.take_queue(QUEUE_TRANSMIT)?;
        let Activation {
            memory, interrupt, ..
        } = activation;
        let queues = Queues::new(
            self.tap.try_clone()?,
            receive,
            transmit,
            memory.clone(),
            interrupt.clone(),
            self.counters.clone(),
        )?;
        self.running = Some(Worker::start(NAME, memory, interrupt, queues)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.running = None;
    }
}
