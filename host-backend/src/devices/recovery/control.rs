//! The control queue: one chain is one message and its reply.

use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::chain::{Message, ReplyBuffer};
use crate::engine::{Refusal, Reply};
use crate::engine_handle::EngineHandle;

/// Maximum number of messages before other events get their turn.
pub(super) const TURN: usize = 64;

/// Carries out the messages in the queue; true if there may be more.
///
/// # Errors
///
/// Fails when the queue's rings are invalid.
pub(super) fn process(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    handle: &EngineHandle,
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
            Some(buffer) => {
                let room = buffer.room();
                let reply = match Message::read(chain, memory) {
                    Ok(message) => handle.message(&message.bytes, room),
                    Err(what) => {
                        handle.count(what);
                        Reply::refused(Refusal::Malformed(what), room)
                    }
                };
                buffer.write(&reply.bytes)
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
