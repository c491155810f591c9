//! A queue's registers: what the driver writes before the queue is ready, and the check that turns
//! it into a queue.

use std::io;

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes of a descriptor (Virtio 1.2, 2.7.5).
const DESCRIPTOR: u64 = 16;
/// Bytes of the available ring besides its elements: flags, index, used_event (2.7.6).
const AVAIL_FIXED: u64 = 6;
/// Bytes of an element of the available ring.
const AVAIL_ELEMENT: u64 = 2;
/// Bytes of the used ring besides its elements: flags, index, avail_event (2.7.8).
const USED_FIXED: u64 = 6;
/// Bytes of an element of the used ring.
const USED_ELEMENT: u64 = 8;

/// The driver-visible state of one queue.
pub(super) struct QueueRegisters {
    max_size: u16,
    /// As the driver wrote it, unchecked until the queue is made ready.
    pub(super) size: u32,
    pub(super) descriptors: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
    /// The queue as checked when the driver made it ready, until the device takes it.
    queue: Option<Queue>,
    ready: bool,
    /// Signalled by KVM, or by the transport, when the driver writes the queue's number to
    /// QueueNotify. It stays the same over resets, since KVM holds it as well.
    pub(super) kick: EventFd,
}

impl QueueRegisters {
    pub(super) fn new(max_size: u16) -> io::Result<Self> {
        Ok(Self {
            max_size,
            size: u32::from(max_size),
            descriptors: 0,
            avail: 0,
            used: 0,
            queue: None,
            ready: false,
            kick: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    pub(super) fn max_size(&self) -> u16 {
        self.max_size
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Back to the state after power-on.
    pub(super) fn reset(&mut self) {
        self.size = u32::from(self.max_size);
        self.descriptors = 0;
        self.avail = 0;
        self.used = 0;
        self.disable();
    }

    pub(super) fn disable(&mut self) {
        self.queue = None;
        self.ready = false;
    }

    /// Makes the queue ready if its size is possible and its three parts lie in guest RAM; says
    /// what is wrong otherwise.
    pub(super) fn enable(
        &mut self,
        memory: &GuestMemoryMmap,
        event_idx: bool,
    ) -> Result<(), &'static str> {
        self.queue = Some(self.check(memory, event_idx)?);
        self.ready = true;
        Ok(())
    }

    /// The checked queue, once.
    pub(super) fn take(&mut self) -> Option<Queue> {
        self.queue.take()
    }

    fn check(&self, memory: &GuestMemoryMmap, event_idx: bool) -> Result<Queue, &'static str> {
        const BAD_SIZE: &str =
            "the driver chose a queue size that is not a power of two or too large";
        const BAD_ADDRESS: &str = "the driver put a queue outside RAM";
        const BAD_ALIGNMENT: &str = "the driver put a queue at a misaligned address";

        let size = u16::try_from(self.size).map_err(|_| BAD_SIZE)?;
        let mut queue = Queue::new(self.max_size).map_err(|_| BAD_SIZE)?;
        queue.try_set_size(size).map_err(|_| BAD_SIZE)?;

        let elements = u64::from(size);
        let parts = [
            (self.descriptors, DESCRIPTOR * elements, Permissions::Read),
            (
                self.avail,
                AVAIL_FIXED + AVAIL_ELEMENT * elements,
                Permissions::Read,
            ),
            (
                self.used,
                USED_FIXED + USED_ELEMENT * elements,
                Permissions::Write,
            ),
        ];
        for (address, length, access) in parts {
            // At most 16 * 32,768: it fits. Address 0 is what a driver that forgot to write the
            // register has, and never a queue's place in a PC's memory.
            let length = length as usize;
            if address == 0 || !memory.check_range(GuestAddress(address), length, access) {
                return Err(BAD_ADDRESS);
            }
        }
        queue
            .try_set_desc_table_address(GuestAddress(self.descriptors))
            .and_then(|()| queue.try_set_avail_ring_address(GuestAddress(self.avail)))
            .and_then(|()| queue.try_set_used_ring_address(GuestAddress(self.used)))
            .map_err(|_| BAD_ALIGNMENT)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(queue)
    }
}
