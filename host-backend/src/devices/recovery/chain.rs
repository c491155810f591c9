//! Descriptor chains of the control queue: the driver's messages, checked before they are handled.

use std::io::{Read, Write};

use virtio_queue::{DescriptorChain, Writer};
use vm_memory::GuestMemoryMmap;
use vmsrs_protocol::control::MESSAGE_BYTES_MAX;

use crate::vmm::poison;

pub(super) type Chain<'a> = DescriptorChain<&'a GuestMemoryMmap>;

/// Where a reply goes.
pub(super) struct ReplyBuffer<'a> {
    writer: Writer<'a>,
}

impl<'a> ReplyBuffer<'a> {
    /// The writable part of a chain; `None` if it does not lie in RAM.
    pub(super) fn new(chain: Chain<'a>, memory: &'a GuestMemoryMmap) -> Option<Self> {
        let writer = chain.writer(memory).ok()?;
        Some(Self { writer })
    }

    /// How many bytes a reply may have.
    pub(super) fn room(&self) -> usize {
        self.writer
            .available_bytes()
            .min(MESSAGE_BYTES_MAX as usize)
    }

    /// Writes a reply that is no longer than the room, and returns its length; 0 if the driver's
    /// memory could not be written after all.
    pub(super) fn write(mut self, reply: &[u8]) -> u32 {
        match self.writer.write_all(reply) {
            Ok(()) => u32::try_from(reply.len()).unwrap_or_default(),
            Err(_) => 0,
        }
    }
}

/// Reads the driver's message from the readable part of a chain into a buffer, or returns what is wrong with the
/// chain. The buffer has room for the longest message so far: memory that is used again does not fault.
pub(super) fn read_message<'a>(
    chain: Chain<'_>,
    memory: &GuestMemoryMmap,
    buffer: &'a mut Vec<u8>,
) -> Result<&'a [u8], &'static str> {
    let length = check(chain.clone())?;
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    let message = &mut buffer[..length];
    chain
        .reader(memory)
        .ok()
        .and_then(|mut reader| reader.read_exact(message).ok())
        .ok_or("the driver sent a message that does not lie in RAM")?;
    if poison::is_noted() {
        return Err("the memory of a message is broken");
    }
    Ok(message)
}

/// Checks the shape of a chain and returns the length of its readable part.
fn check(chain: Chain<'_>) -> Result<usize, &'static str> {
    let mut length: u32 = 0;
    let mut writable = false;
    let mut ended = false;
    for descriptor in chain {
        if descriptor.is_write_only() {
            writable = true;
        } else if writable {
            return Err("the driver sent a chain with readable descriptors after writable ones");
        } else {
            length = length
                .checked_add(descriptor.len())
                .filter(|&length| length <= MESSAGE_BYTES_MAX)
                .ok_or("the driver sent a message that is too long")?;
        }
        ended = !descriptor.has_next();
    }
    if !ended {
        // The iterator stops after as many descriptors as there are, and at one it cannot read.
        return Err("the driver sent a chain without an end");
    }
    if !writable {
        return Err("the driver sent a chain without a writable part");
    }
    if length == 0 {
        return Err("the driver sent a chain without a readable part");
    }
    Ok(length as usize)
}
