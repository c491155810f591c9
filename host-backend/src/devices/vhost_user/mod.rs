//! A virtio device whose work is done by another process, its *daemon*, which speaks vhost-user: disks, shared folders and
//! network cards.
//!
//! The daemon gets guest RAM, which is a file in memory of its own, and rings in another one; nothing else of this process. The
//! driver's rings stay with [`queues`], which passes on what comes from either side. So it is known at any time
//! what the daemon has not answered, and if it dies the driver gets errors instead of silence.

mod daemon;
mod link;
mod queues;
mod rings;
#[cfg(test)]
mod tests;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_FS, VIRTIO_ID_NET};
use virtio_bindings::virtio_net::*;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestMemoryMmap;

pub use self::daemon::{DaemonState, DaemonStatus};
use self::link::Link;
pub use self::link::LinkError;
use self::queues::{Queues, Traffic};
use self::rings::{Chain, Rings};
use super::net::{self, MacAddress};
use super::worker::Worker;
use super::{ActivateError, Activation, VirtioDevice, copy_config};
use crate::host_memory::MemoryFileError;
use crate::tally::Tally;

/// Size of every queue in descriptors.
const QUEUE_SIZE: u16 = 256;

/// Bytes of the configuration space of a disk: as much as every version of QEMU has.
const BLOCK_CONFIG: usize = 60;

/// Longest tag of a shared folder in bytes (Virtio 1.2, 5.11.4).
pub const TAG_MAX: usize = 36;

/// What a daemon can serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A disk: virtio-blk (Virtio 1.2, 5.2).
    Block,
    /// A shared folder: virtio-fs (Virtio 1.2, 5.11), with the tag by which the guest mounts it.
    FileSystem {
        /// At most [`TAG_MAX`] bytes.
        tag: String,
    },
    /// A network card: virtio-net (Virtio 1.2, 5.1), with two queues.
    Network {
        /// The guest's address.
        mac: MacAddress,
        /// The most that a frame may carry, if the driver is to be told.
        mtu: Option<u16>,
    },
}

/// The queue of a network card with empty buffers, which are used when a frame comes.
const RECEIVE: usize = 0;

impl Kind {
    /// Names the device in the log, and its thread.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Block => "disk",
            Self::FileSystem { .. } => "share",
            Self::Network { .. } => "network",
        }
    }

    fn device_id(&self) -> u32 {
        match self {
            Self::Block => VIRTIO_ID_BLOCK,
            Self::FileSystem { .. } => VIRTIO_ID_FS,
            Self::Network { .. } => VIRTIO_ID_NET,
        }
    }

    fn queues(&self) -> &'static [u16] {
        match self {
            Self::Block => &[QUEUE_SIZE],
            // For what must not wait, and for everything else; or to the guest, and from it.
            Self::FileSystem { .. } | Self::Network { .. } => &[QUEUE_SIZE, QUEUE_SIZE],
        }
    }

    /// The features of the type that are passed on if the daemon has them. A disk's queues are one, and its cache stays as
    /// it is. A network card's are two, and it has no queue for commands.
    fn features(&self) -> u64 {
        let known: &[u32] = match self {
            Self::Block => &[
                VIRTIO_BLK_F_SIZE_MAX,
                VIRTIO_BLK_F_SEG_MAX,
                VIRTIO_BLK_F_GEOMETRY,
                VIRTIO_BLK_F_RO,
                VIRTIO_BLK_F_BLK_SIZE,
                VIRTIO_BLK_F_FLUSH,
                VIRTIO_BLK_F_TOPOLOGY,
                VIRTIO_BLK_F_DISCARD,
                VIRTIO_BLK_F_WRITE_ZEROES,
            ],
            Self::FileSystem { .. } => &[],
            Self::Network { .. } => &[
                VIRTIO_NET_F_CSUM,
                VIRTIO_NET_F_GUEST_CSUM,
                VIRTIO_NET_F_GUEST_TSO4,
                VIRTIO_NET_F_GUEST_TSO6,
                VIRTIO_NET_F_GUEST_ECN,
                VIRTIO_NET_F_GUEST_UFO,
                VIRTIO_NET_F_HOST_TSO4,
                VIRTIO_NET_F_HOST_TSO6,
                VIRTIO_NET_F_HOST_ECN,
                VIRTIO_NET_F_HOST_UFO,
                VIRTIO_NET_F_MRG_RXBUF,
            ],
        };
        bits(known)
    }

    /// The features of the configuration space, where the daemon does not have it. They are nothing to the daemon.
    fn own_features(&self) -> u64 {
        match self {
            Self::Block | Self::FileSystem { .. } => 0,
            Self::Network { mtu: None, .. } => bits(&[VIRTIO_NET_F_MAC]),
            Self::Network { .. } => bits(&[VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU]),
        }
    }

    /// The configuration space, where the daemon does not have it.
    fn own_config(&self) -> Option<Vec<u8>> {
        match self {
            Self::Block => None,
            Self::FileSystem { tag } => {
                let mut config = tag.clone().into_bytes();
                config.resize(TAG_MAX, 0);
                let request_queues = (self.queues().len() - 1) as u32;
                config.extend(request_queues.to_le_bytes());
                Some(config)
            }
            &Self::Network { mac, mtu } => Some(net::config_space(mac, mtu)),
        }
    }

    /// Whether what is in a queue is answered at some time by every daemon. A buffer for a frame may stay forever, and without
    /// a daemon it must: the driver would replace it at once.
    fn is_answered(&self, queue: usize) -> bool {
        !matches!(self, Self::Network { .. }) || queue != RECEIVE
    }

    /// What it means for the guest that the daemon is lost.
    pub fn loss(&self) -> &'static str {
        match self {
            Self::Block | Self::FileSystem { .. } => {
                "all access of the guest to it fails with I/O errors"
            }
            Self::Network { .. } => "the guest's network card there passes nothing on",
        }
    }

    /// Answers a request that no daemon will answer with an I/O error; returns the number of bytes written from the
    /// beginning on. One that has no room for an answer expects none.
    fn fail(&self, chain: Chain, memory: &GuestMemoryMmap) -> u32 {
        match self {
            Self::Block => fail_block(chain, memory),
            Self::FileSystem { .. } => fail_file_system(chain, memory).unwrap_or(0),
            // A frame is lost.
            Self::Network { .. } => 0,
        }
    }
}

/// These features as a bit mask.
fn bits(features: &[u32]) -> u64 {
    features.iter().fold(0, |all, feature| all | 1 << feature)
}

/// The last byte of a disk's request is its status (Virtio 1.2, 5.2.6).
fn fail_block(chain: Chain, memory: &GuestMemoryMmap) -> u32 {
    if let Ok(mut writer) = chain.writer(memory)
        && let Some(before) = writer.available_bytes().checked_sub(1)
        && let Ok(mut status) = writer.split_at(before)
    {
        // It is in RAM, which the writer has checked.
        let _ = status.write_all(&[VIRTIO_BLK_S_IOERR as u8]);
    }
    0
}

/// `struct fuse_in_header` has the request's number in its bytes 8 to 15; `struct fuse_out_header` is the length, the
/// error and that number (Linux's `uapi/linux/fuse.h`).
fn fail_file_system(chain: Chain, memory: &GuestMemoryMmap) -> Option<u32> {
    const ANSWER: u32 = 16;
    let mut head = [0; 16];
    let mut reader = chain.clone().reader(memory).ok()?;
    reader.read_exact(&mut head).ok()?;
    let mut answer = [0; ANSWER as usize];
    answer[..4].copy_from_slice(&ANSWER.to_le_bytes());
    answer[4..8].copy_from_slice(&(-libc::EIO).to_le_bytes());
    answer[8..].copy_from_slice(&head[8..]);
    let mut writer = chain.writer(memory).ok()?;
    (writer.available_bytes() >= answer.len()).then_some(())?;
    writer.write_all(&answer).ok()?;
    Some(ANSWER)
}

/// Why a device with a daemon cannot be made.
#[derive(Debug, Error)]
pub enum VhostUserError {
    /// The daemon does not do what it is needed for.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The host has no memory for the rings.
    #[error(transparent)]
    Rings(#[from] MemoryFileError),
    /// The host cannot map them.
    #[error("cannot map the rings of a daemon")]
    Map(#[from] vm_memory::mmap::FromRangesError),
}

/// The front end of a daemon.
pub struct VhostUser {
    kind: Kind,
    link: Link,
    features: u64,
    config: Vec<u8>,
    rings: Rings,
    tally: Arc<Tally>,
    running: Option<Running>,
}

/// What there is between the driver's start of the device and its reset.
struct Running {
    worker: Worker,
    traffic: Arc<Mutex<Traffic>>,
}

impl VhostUser {
    /// Makes the front end of the daemon at the other end of `socket`, which is to serve devices of this kind.
    ///
    /// # Errors
    ///
    /// Fails when the daemon does not answer as it should, or has gone.
    pub fn new(
        kind: Kind,
        socket: UnixStream,
        status: Arc<DaemonStatus>,
    ) -> Result<Self, VhostUserError> {
        let own = kind.own_config();
        let wanted = if own.is_some() { 0 } else { BLOCK_CONFIG };
        let (link, offer) = Link::new(socket, kind.queues().len(), wanted, status)?;
        let of_rings = offer.features & 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_F_VERSION_1
            // Between the driver and this process alone.
            | 1 << VIRTIO_RING_F_EVENT_IDX;
        Ok(Self {
            link,
            features: offer.features & kind.features() | kind.own_features() | of_rings,
            config: own.unwrap_or(offer.config),
            rings: Rings::new(kind.queues())?,
            kind,
            tally: Arc::default(),
            running: None,
        })
    }
}

impl VhostUser {
    /// Names the device in the log.
    pub fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// What the driver did wrong with its queues, by kind.
    pub fn tally(&self) -> Arc<Tally> {
        self.tally.clone()
    }
}

fn lock(traffic: &Mutex<Traffic>) -> MutexGuard<'_, Traffic> {
    // A worker that panicked leaves requests that are never answered, and the reset gives them up.
    traffic.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VirtioDevice for VhostUser {
    fn device_id(&self) -> u32 {
        self.kind.device_id()
    }

    fn vendor_id(&self) -> u32 {
        vmsrs_protocol::device::VENDOR_ID
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        self.kind.queues()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            queues,
            interrupt,
            features,
        } = activation;
        self.rings.clear();
        let queues = queues
            .into_iter()
            .map(|queue| self.rings.queue(queue))
            .collect::<Result<Vec<_>, _>>()?;
        // A daemon that cannot be started has been reported, and its requests fail.
        let features = features & !(1 << VIRTIO_RING_F_EVENT_IDX | self.kind.own_features());
        self.link.start(features, &memory, &self.rings, &queues);
        let traffic = Traffic::new(
            self.kind.clone(),
            queues,
            memory.clone(),
            interrupt.clone(),
            self.link.status(),
            self.tally.clone(),
        );
        let traffic = Arc::new(Mutex::new(traffic));
        let serve = Queues::new(traffic.clone(), self.link.socket())?;
        let worker = Worker::start(self.kind.name(), memory, interrupt, serve)?;
        self.running = Some(Running { worker, traffic });
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(Running { worker, traffic }) = self.running.take() {
            drop(worker);
            // What the daemon still does in RAM ends before somebody else has that memory.
            self.link.stop(&mut lock(&traffic), &self.rings);
        }
    }
}
