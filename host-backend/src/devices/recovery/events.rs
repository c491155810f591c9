//! The event queue: unsolicited messages of the host.

use bytemuck::bytes_of;
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmsrs_protocol::event::Event;

use super::chain::ReplyBuffer;
use crate::engine_handle::EngineHandle;

/// Maximum number of the driver's buffers served in one turn.
pub(super) const TURN: usize = 64;

/// Puts pending events into the driver's buffers; true if there may be more to do. Buffers
/// that are too small count as well, so that a turn is bounded.
///
/// # Errors
///
/// Fails when the queue's rings are invalid.
pub(super) fn process(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    handle: &EngineHandle,
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
