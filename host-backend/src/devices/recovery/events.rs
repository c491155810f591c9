//! The event queue: what the host reports by itself.

use std::collections::VecDeque;

use bytemuck::bytes_of;
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmsrs_protocol::event::{EVENT_DAMAGE, Event};

use super::chain::ReplyBuffer;
use super::handle::RecoveryHandle;

/// Most events that wait for the driver's buffers.
const PENDING_MAX: usize = 64;

/// Most buffers of the driver before others, and a stop, get their turn.
pub(super) const TURN: usize = 64;

/// Events that wait for the thread that serves the queues.
#[derive(Debug, Default)]
pub(super) struct Pending {
    events: VecDeque<Event>,
}

impl Pending {
    /// Adds an event; false if there are too many already. Damage is always told: a guest cannot
    /// cause it, and there is no more of it than there are pages.
    pub(super) fn push(&mut self, event: Event) -> bool {
        let has_room = self.events.len() < PENDING_MAX || event.kind == EVENT_DAMAGE;
        if has_room {
            self.events.push_back(event);
        }
        has_room
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.events.clear();
    }
}

/// Puts pending events into the driver's buffers; true if there may be more to do. (Buffers that
/// are too small use up a turn and no event, so that the number of events is no bound.)
///
/// # Errors
///
/// Fails when the queue's rings make no sense.
pub(super) fn process(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    handle: &RecoveryHandle,
) -> Result<bool, QueueError> {
    for _ in 0..TURN {
        if !handle.has_events() {
            return Ok(false);
        }
        let Some(chain) = queue.iter(memory)?.next() else {
            // The driver kicks when it has filled the queue again.
            if queue.enable_notification(memory)? {
                continue;
            }
            return Ok(false);
        };
        let head = chain.head_index();
        let buffer =
            ReplyBuffer::new(chain, memory).filter(|buffer| buffer.room() >= size_of::<Event>());
        let written = match buffer {
            Some(buffer) => handle
                .pop_event()
                .map_or(0, |event| buffer.write(bytes_of(&event))),
            None => {
                handle.count("the driver gave a buffer that is too small for an event");
                0
            }
        };
        queue.add_used(memory, head, written)?;
    }
    Ok(true)
}
