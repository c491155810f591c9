//! The network card: virtio-net (Virtio 1.2, 5.1) with one receive and one transmit queue, on a
//! tap interface.
//!
//! Checksums and segmentation are offloaded as far as the driver agrees ([`offload`]). The header with which a frame of the guest
//! asks for that is checked where it enters; the host's kernel checks it again.

mod counters;
mod offload;
mod queues;
mod tap;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

pub use self::counters::{NetCounters, NetCounts};
use self::offload::{Agreed, TapOffloads};
use self::queues::Queues;
pub use self::tap::{Tap, TapAddress, TapConfig, TapConfigError, TapError};
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

/// Least MTU in bytes that a network card may tell its driver (Virtio 1.2, 5.1.4.1).
pub const MTU_MIN: u16 = 68;

/// An Ethernet address.
pub type MacAddress = [u8; 6];

/// The configuration space (Virtio 1.2, 5.1.4): the address, the link, which is always up, the number of pairs of queues, a feature
/// that the card does not have, and the MTU.
pub(super) fn config_space(mac: MacAddress, mtu: Option<u16>) -> Vec<u8> {
    let mut config = mac.to_vec();
    config.extend((VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
    config.extend([0; 2]);
    config.extend(mtu.unwrap_or(0).to_le_bytes());
    config
}

/// The network card.
#[derive(Debug)]
pub struct Net {
    tap: Tap,
    config: Vec<u8>,
    counters: Arc<NetCounters>,
    running: Option<Worker>,
}

impl Net {
    /// Makes a network card with the address `mac` on `tap`.
    pub fn new(tap: Tap, mac: MacAddress) -> Self {
        Self {
            config: config_space(mac, tap.mtu),
            tap,
            counters: Arc::default(),
            running: None,
        }
    }

    /// Sets which offloads the tap interface uses towards the guest.
    fn set_offloads(&self, offloads: TapOffloads) {
        if let Err(error) = self.tap.set_offloads(offloads) {
            // It does more itself, or frames that the guest cannot take are dropped.
            log::info!("{NAME}: the tap interface keeps its offloads: {error}");
        }
    }

    /// What went through the card so far.
    pub fn counters(&self) -> Arc<NetCounters> {
        self.counters.clone()
    }
}

/// An address for the guest's network card on the tap interface, or at the socket, with this name: locally
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
        let mtu = self.tap.mtu.map_or(0, |_| 1 << VIRTIO_NET_F_MTU);
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_STATUS
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | mtu
            | offload::offered(self.tap.offloads)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let receive = activation.take_queue(QUEUE_RECEIVE)?;
        let transmit = activation.take_queue(QUEUE_TRANSMIT)?;
        let Activation {
            memory,
            interrupt,
            features,
            ..
        } = activation;
        let agreed = Agreed::new(features, self.tap.mtu);
        let queues = Queues::new(
            self.tap.file.try_clone()?,
            agreed,
            receive,
            transmit,
            memory.clone(),
            interrupt.clone(),
            self.counters.clone(),
        )?;
        self.set_offloads(agreed.tap());
        match Worker::start(NAME, memory, interrupt, queues) {
            Ok(worker) => self.running = Some(worker),
            Err(error) => {
                self.set_offloads(0);
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        if self.running.take().is_some() {
            self.set_offloads(0);
        }
    }
}
