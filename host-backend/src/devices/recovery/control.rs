//! The control queue: one chain is one message and its reply.

use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::chain::{ReplyBuffer, read_message};
use crate::engine::{Refusal, Reply};
use crate::engine_handle::EngineHandle;

/// Maximum number of messages before other events get their turn.
pub(super) const TURN: usize = 64;

/// Carries out the messages in the queue, which are read into `buffer`; true if there may be more.
///
/// # Errors
///
/// Fails when the queue's rings are invalid.
pub(super) fn process(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    handle: &EngineHandle,
    buffer: &mut Vec<u8>,
) -> Result<bool, QueueError> {
    queue.disable_notification(memory)?;
    for _ in 0..TURN {
        let Some(chain) = queue.iter(memory)?.next() else {
            // A message that came in this moment is seen here; one that comes later kicks.
            if queue.enable_notification(memory)? {
                continue;
            }
            return Ok(false);
        };
        let head = chain.head_index();
        // The reply's place is checked before the message has any effect.
        let written = match ReplyBuffer::new(chain.clone(), memory) {
            Some(place) => {
                let room = place.room();
                let reply = match read_message(chain, memory, buffer) {
                    Ok(message) => handle.message(message, room),
                    Err(what) => {
                        handle.count(what);
                        Reply::refused(Refusal::Malformed(what), room)
                    }
                };
                place.write(&reply.bytes)
            }
            None => {
                handle.count("the driver sent a chain whose reply does not lie in RAM");
                0
            }
        };
        queue.add_used(memory, head, written)?;
    }
    Ok(true)
}
