//! The rings between this process and a daemon (Virtio 1.2, 2.7), in a file in memory that has nothing else.
//!
//! A chain keeps the descriptors' numbers of the driver's table, whose copy is in the daemon's: what the driver changes later
//! has no effect, and an answer names the driver's chain.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Error as QueueError, QueueT};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap,
    GuestMemoryRegion,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::VhostUserError;
use crate::devices::ActiveQueue;
use crate::devices::used::UsedRing;
use crate::host_memory::{HostPages, memory_file};

/// Where a daemon sees the rings: beyond every guest's memory.
const START: u64 = 1 << 46;

/// Bytes for each of the three parts of a queue.
const PART: u64 = 4096;
/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;
/// Most descriptors for which the parts have room.
const SIZE_MAX: u64 = PART / DESCRIPTOR;

/// Offset of the index in both rings, and of their elements.
const INDEX: u64 = 2;
const ELEMENTS: u64 = 4;

/// A request of the driver.
pub(super) type Chain = DescriptorChain<Arc<GuestMemoryMmap>>;

/// The memory of all rings of a daemon.
pub(super) struct Rings {
    pub(super) memory: GuestMemoryMmap,
}

/// A queue of the driver and its counterpart of the daemon.
pub(super) struct RelayedQueue {
    pub(super) driver: ActiveQueue,
    /// What the driver sees as answered.
    pub(super) used: UsedRing,
    /// Tells the daemon of requests.
    pub(super) ask: EventFd,
    /// Tells of the daemon's answers.
    pub(super) answer: EventFd,
    rings: GuestMemoryMmap,
    /// Number of requests and of answers so far, modulo 2^16.
    asked: u16,
    answered: u16,
    /// What the daemon has not answered, by the first descriptor.
    waiting: Vec<Option<Chain>>,
}

/// The daemon answered what it was not asked.
#[derive(Debug)]
pub(super) struct Unasked;

impl Rings {
    /// Makes rings for queues of at most these sizes.
    pub(super) fn new(queues: &[u16]) -> Result<Self, VhostUserError> {
        debug_assert!(queues.iter().all(|&size| u64::from(size) <= SIZE_MAX));
        let length = queues.len() as u64 * 3 * PART;
        let file = memory_file(c"vmsrs-rings", length, HostPages::Standard, true)?;
        let range = (
            GuestAddress(START),
            length as usize,
            Some(FileOffset::new(file, 0)),
        );
        Ok(Self {
            memory: GuestMemoryMmap::from_ranges_with_files([range])?,
        })
    }

    /// Empties all rings; no daemon works on them.
    pub(super) fn clear(&self) {
        for region in self.memory.iter() {
            let zeros = vec![0; region.len() as usize];
            let cleared = self.memory.write_slice(&zeros, region.start_addr());
            debug_assert!(cleared.is_ok(), "the slice is as long as the region");
        }
    }

    /// The counterpart of a queue of the driver, empty.
    pub(super) fn queue(&self, driver: ActiveQueue) -> io::Result<RelayedQueue> {
        Ok(RelayedQueue {
            ask: EventFd::new(EFD_NONBLOCK)?,
            answer: EventFd::new(EFD_NONBLOCK)?,
            rings: self.memory.clone(),
            asked: 0,
            answered: 0,
            waiting: (0..driver.queue.size()).map(|_| None).collect(),
            used: UsedRing::new(&driver.queue),
            driver,
        })
    }
}

impl RelayedQueue {
    /// Addresses of descriptors, available and used ring.
    pub(super) fn parts(&self) -> [u64; 3] {
        let start = START + u64::from(self.driver.index) * 3 * PART;
        [start, start + PART, start + 2 * PART]
    }

    /// Number of requests that are not answered.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.iter().flatten().count()
    }

    /// Passes a request on, to be seen with the next [`Self::publish`]. One that cannot be passed on comes back: it has no end,
    /// or has been asked already.
    pub(super) fn ask(&mut self, chain: Chain) -> Result<(), Chain> {
        let head = chain.head_index();
        let is_new = matches!(self.waiting.get(usize::from(head)), Some(None));
        if !is_new || self.copy(chain.memory(), head).is_none() {
            return Err(chain);
        }
        let [_, available, _] = self.parts();
        let slot = u64::from(self.asked % self.driver.queue.size());
        let at = GuestAddress(available + ELEMENTS + 2 * slot);
        if self.rings.write_obj(head.to_le(), at).is_err() {
            return Err(chain);
        }
        self.asked = self.asked.wrapping_add(1);
        self.waiting[usize::from(head)] = Some(chain);
        Ok(())
    }

    /// Copies the descriptors of a chain; `None` if it does not end.
    fn copy(&self, ram: &GuestMemoryMmap, head: u16) -> Option<()> {
        let size = self.driver.queue.size();
        let [table, _, _] = self.parts();
        let mut index = head;
        for _ in 0..size {
            if index >= size {
                return None;
            }
            let offset = DESCRIPTOR * u64::from(index);
            let from = GuestAddress(self.driver.queue.desc_table().checked_add(offset)?);
            let raw: RawDescriptor = ram.read_obj(from).ok()?;
            self.rings
                .write_obj(raw, GuestAddress(table + offset))
                .ok()?;
            let descriptor = Descriptor::from(raw);
            if !descriptor.has_next() || descriptor.refers_to_indirect_table() {
                return Some(());
            }
            index = descriptor.next();
        }
        None
    }

    /// Lets the daemon see what was asked.
    pub(super) fn publish(&self) {
        let [_, available, _] = self.parts();
        let at = GuestAddress(available + INDEX);
        let stored = self.rings.store(self.asked.to_le(), at, Ordering::Release);
        debug_assert!(stored.is_ok(), "the ring is in its memory");
        // A full counter means that it is told anyway.
        let _ = self.ask.write(1);
    }

    /// Takes the next answer: the request's first descriptor, and how many bytes were written.
    pub(super) fn next_answer(&mut self) -> Result<Option<(u16, u32)>, Unasked> {
        let answer = self.read_answer().map_err(|_| Unasked)?;
        let Some((head, length)) = answer else {
            return Ok(None);
        };
        let head = u16::try_from(head).map_err(|_| Unasked)?;
        let waiting = self.waiting.get_mut(usize::from(head));
        waiting.and_then(Option::take).ok_or(Unasked)?;
        self.answered = self.answered.wrapping_add(1);
        Ok(Some((head, length)))
    }

    fn read_answer(&self) -> Result<Option<(u32, u32)>, GuestMemoryError> {
        let [_, _, used] = self.parts();
        let index = self
            .rings
            .load::<u16>(GuestAddress(used + INDEX), Ordering::Acquire)?;
        if u16::from_le(index) == self.answered {
            return Ok(None);
        }
        let slot = u64::from(self.answered % self.driver.queue.size());
        let at = used + ELEMENTS + 8 * slot;
        let head: u32 = self.rings.read_obj(GuestAddress(at))?;
        let length: u32 = self.rings.read_obj(GuestAddress(at + 4))?;
        Ok(Some((u32::from_le(head), u32::from_le(length))))
    }

    /// Answers the driver, which sees it later.
    pub(super) fn put(
        &mut self,
        memory: &GuestMemoryMmap,
        head: u16,
        length: u32,
    ) -> Result<(), QueueError> {
        self.used.put(&self.driver.queue, memory, head, length)
    }

    /// Takes all requests that are not answered, which nobody will answer.
    pub(super) fn give_up(&mut self) -> Vec<Chain> {
        self.waiting.iter_mut().filter_map(Option::take).collect()
    }
}
