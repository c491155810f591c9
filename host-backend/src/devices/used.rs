//! The used ring of a queue, for answers that belong together.
//!
//! `Queue::add_used()` shows the driver one element at a time. The buffers of one received frame must appear at once: a
//! driver that sees the first takes all of them.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Error as QueueError, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Places in the rings (Virtio 1.2, 2.7.6 and 2.7.8).
const INDEX: u64 = 2;
const ELEMENTS: u64 = 4;
const USED_ELEMENT: u64 = 8;
const AVAILABLE_ELEMENT: u64 = 2;

/// What the driver sees of a queue's used ring. While this is used, the queue's own `add_used()` and `needs_notification()`
/// are not.
#[derive(Debug)]
pub(super) struct UsedRing {
    /// Elements that are written and not shown.
    hidden: u16,
    /// The ring's index when the driver was last interrupted, or did not want to be.
    told: u16,
}

impl UsedRing {
    pub(super) fn new(queue: &Queue) -> Self {
        Self {
            hidden: 0,
            told: queue.next_used(),
        }
    }

    /// Writes the next element, which the driver does not see before [`Self::show`].
    pub(super) fn put(
        &mut self,
        queue: &Queue,
        memory: &GuestMemoryMmap,
        head: u16,
        length: u32,
    ) -> Result<(), QueueError> {
        if head >= queue.size() {
            return Err(QueueError::InvalidDescriptorIndex);
        }
        let slot = queue.next_used().wrapping_add(self.hidden) % queue.size();
        let at = place(queue.used_ring(), ELEMENTS + USED_ELEMENT * u64::from(slot))?;
        memory
            .write_obj([u32::from(head).to_le(), length.to_le()], at)
            .map_err(QueueError::GuestMemory)?;
        self.hidden = self.hidden.wrapping_add(1);
        Ok(())
    }

    /// Shows the driver all that was put.
    pub(super) fn show(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
    ) -> Result<(), QueueError> {
        if self.hidden == 0 {
            return Ok(());
        }
        let next = queue.next_used().wrapping_add(self.hidden);
        self.hidden = 0;
        queue.set_next_used(next);
        memory
            .store(
                next.to_le(),
                place(queue.used_ring(), INDEX)?,
                Ordering::Release,
            )
            .map_err(QueueError::GuestMemory)
    }

    /// Whether the driver wants an interrupt for what it was shown since the last call (Virtio 1.2, 2.7.7.2).
    pub(super) fn needs_interrupt(
        &mut self,
        queue: &Queue,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, QueueError> {
        let next = queue.next_used();
        let shown = next.wrapping_sub(self.told);
        self.told = next;
        if shown == 0 || !queue.event_idx_enabled() {
            return Ok(shown != 0);
        }
        // The driver writes which element it waits for, then looks at the index once more.
        fence(Ordering::SeqCst);
        let at = ELEMENTS + AVAILABLE_ELEMENT * u64::from(queue.size());
        let event: u16 = memory
            .load(place(queue.avail_ring(), at)?, Ordering::Relaxed)
            .map_err(QueueError::GuestMemory)?;
        let since_event = next.wrapping_sub(u16::from_le(event)).wrapping_sub(1);
        Ok(since_event < shown)
    }
}

fn place(ring: u64, offset: u64) -> Result<GuestAddress, QueueError> {
    ring.checked_add(offset)
        .map(GuestAddress)
        .ok_or(QueueError::AddressOverflow)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AVAILABLE: u64 = 0x1000;
    const USED: u64 = 0x2000;
    const SIZE: u16 = 8;

    fn queue(next_used: u16) -> (Queue, GuestMemoryMmap) {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_avail_ring_address(Some(AVAILABLE as u32), None);
        queue.set_used_ring_address(Some(USED as u32), None);
        queue.set_next_used(next_used);
        queue.set_event_idx(true);
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        (queue, memory)
    }

    #[test]
    fn elements_appear_together() {
        let (mut queue, memory) = queue(u16::MAX);
        let mut used = UsedRing::new(&queue);
        let index = || memory.read_obj::<u16>(GuestAddress(USED + 2)).unwrap();
        used.put(&queue, &memory, 3, 10).unwrap();
        used.put(&queue, &memory, 5, 20).unwrap();
        assert_eq!((index(), queue.next_used()), (0, u16::MAX));
        used.show(&mut queue, &memory).unwrap();
        assert_eq!((index(), queue.next_used()), (1, 1));
        // The last slot, and the first.
        for (slot, element) in [(7, [3u32, 10]), (0, [5, 20])] {
            let at = GuestAddress(USED + 4 + 8 * slot);
            assert_eq!(memory.read_obj::<[u32; 2]>(at).unwrap(), element);
        }
        used.show(&mut queue, &memory).unwrap();
        assert_eq!(index(), 1);
        let wrong = used.put(&queue, &memory, SIZE, 0);
        assert!(matches!(wrong, Err(QueueError::InvalidDescriptorIndex)));
    }

    #[test]
    fn the_driver_is_interrupted_for_the_element_that_it_waits_for() {
        for start in [0, u16::MAX - 1] {
            for (event, wants) in [(0u16, true), (1, true), (2, true), (3, false), (9, false)] {
                let (mut queue, memory) = queue(start);
                let mut used = UsedRing::new(&queue);
                let at = GuestAddress(AVAILABLE + 4 + 2 * u64::from(SIZE));
                let event = start.wrapping_add(event);
                memory.write_obj(event, at).unwrap();
                for head in 0..3 {
                    used.put(&queue, &memory, head, 0).unwrap();
                }
                assert!(!used.needs_interrupt(&queue, &memory).unwrap());
                used.show(&mut queue, &memory).unwrap();
                let needs = used.needs_interrupt(&queue, &memory).unwrap();
                assert_eq!(needs, wants, "{start} {event}");
                assert!(!used.needs_interrupt(&queue, &memory).unwrap());
            }
        }
    }

    #[test]
    fn without_event_indices_every_answer_interrupts() {
        let (mut queue, memory) = queue(0);
        queue.set_event_idx(false);
        let mut used = UsedRing::new(&queue);
        assert!(!used.needs_interrupt(&queue, &memory).unwrap());
        used.put(&queue, &memory, 0, 0).unwrap();
        used.show(&mut queue, &memory).unwrap();
        assert!(used.needs_interrupt(&queue, &memory).unwrap());
    }
}
