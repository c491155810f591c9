//! Slabs: for servers that keep an allocator of their own.

use super::domain::fail;
use crate::error::Error;
use crate::heap::{self, GRAIN};
use crate::state::domain::Domain;
use std::ptr::NonNull;

/// Bytes of each chunk of a slab that are the library's: a chunk of `n` bytes can be taken with `n - CHUNK_OVERHEAD`.
pub const CHUNK_OVERHEAD: usize = 24;

const _: () = assert!(CHUNK_OVERHEAD == heap::CHUNK_OVERHEAD);

/// Largest chunk: its header has the length of a red zone of up to 64 MiB.
const CHUNK_MAX: usize = 32 << 20;

const TOO_MUCH: Error = Error::Argument("a chunk has fewer bytes");

impl Domain {
    /// Takes a *slab*: room for `chunks` chunks, which the server gives out itself. A new chunk begins every `chunk_bytes` bytes
    /// (a multiple of 16, from 32 to 32 MiB), the first one at the address that this returns; all are aligned to 16.
    /// [`CHUNK_OVERHEAD`] bytes of each are the library's.
    ///
    /// The server keeps its free lists and says what it does: [`Domain::take_chunk`], [`Domain::give_chunk`]. So the audit
    /// finds an overrun from one chunk into the next, and writes to a chunk that is not in use. All chunks of a new slab
    /// are free; the first `keep` bytes of each are the server's, for links, and undefined.
    ///
    /// This writes to all chunks, so a slab is limited by what a request can write.
    ///
    /// # Errors
    ///
    /// [`Error::NotInRequest`], [`Error::NotHeld`], [`Error::Argument`], [`Error::OutOfMemory`].
    pub fn allocate_slab(
        &'static self,
        chunk_bytes: usize,
        chunks: usize,
        keep: usize,
    ) -> Result<NonNull<u8>, Error> {
        self.holding(|thread| {
            let is_size = (2 * GRAIN..=CHUNK_MAX).contains(&chunk_bytes);
            if !chunk_bytes.is_multiple_of(GRAIN) || !is_size || chunks == 0 {
                return Err(Error::Argument(
                    "a slab has chunks of a multiple of 16 bytes, from 32 to 32 MiB",
                ));
            }
            if keep > chunk_bytes - CHUNK_OVERHEAD {
                return Err(TOO_MUCH);
            }
            let slab = thread
                .state()
                .heap(self)
                .allocate_slab(self.first(), chunk_bytes, chunks, keep)
                .unwrap_or_else(|damage| fail(damage));
            thread.state().note_heap(self);
            slab.ok_or(Error::OutOfMemory {
                size: chunk_bytes.saturating_mul(chunks),
            })
        })
    }

    /// Says that a free chunk of a slab is in use, with `size` bytes: what follows them is a red zone. What the server kept
    /// of the chunk stays as it is; the rest is undefined. Nothing but the chunk is written to.
    ///
    /// A pointer that is not a free chunk makes the request fail ([`crate::Kind::HeapCorrupt`]): a list of the server is
    /// wrong. So does a chunk that was written to since it was free ([`crate::Kind::UseAfterFree`]).
    ///
    /// # Errors
    ///
    /// [`Error::NotInRequest`], [`Error::NotHeld`]; [`Error::Argument`] if the chunk has fewer bytes: it stays free.
    pub fn take_chunk(&'static self, chunk: NonNull<u8>, size: usize) -> Result<(), Error> {
        self.holding(|thread| {
            let mut heap = thread.state().heap(self);
            let has_room = heap.take_chunk(chunk.as_ptr() as u64, size);
            if !has_room.unwrap_or_else(|damage| fail(damage)) {
                return Err(TOO_MUCH);
            }
            self.note_recent(thread, chunk);
            Ok(())
        })
    }

    /// Says that a chunk of a slab is free. Its first `keep` bytes are the server's: they stay, and may be written to. Up to
    /// 1024 bytes after them are poisoned.
    ///
    /// A pointer that is not a chunk in use makes the request fail ([`crate::Kind::DoubleFree`],
    /// [`crate::Kind::ForeignFree`]), as does an overwritten red zone.
    ///
    /// # Errors
    ///
    /// [`Error::NotInRequest`], [`Error::NotHeld`]; [`Error::Argument`] if the chunk has fewer bytes: it stays in use.
    ///
    /// # Safety
    ///
    /// Nobody uses more than these bytes of the chunk afterwards.
    pub unsafe fn give_chunk(&'static self, chunk: NonNull<u8>, keep: usize) -> Result<(), Error> {
        self.holding(|thread| {
            let mut heap = thread.state().heap(self);
            let has_room = heap.give_chunk(chunk.as_ptr() as u64, keep);
            if !has_room.unwrap_or_else(|damage| fail(damage)) {
                return Err(TOO_MUCH);
            }
            self.note_recent(thread, chunk);
            Ok(())
        })
    }

    /// Gives a whole slab back, by its first chunk. Chunks may be in use. What is not a slab's first chunk makes the request
    /// fail, as in [`Domain::deallocate`], which takes no chunks.
    ///
    /// # Errors
    ///
    /// [`Error::NotInRequest`], [`Error::NotHeld`].
    ///
    /// # Safety
    ///
    /// Nobody uses any of the chunks afterwards.
    pub unsafe fn deallocate_slab(&'static self, slab: NonNull<u8>) -> Result<(), Error> {
        self.holding(|thread| {
            let mut heap = thread.state().heap(self);
            let block = heap.join_slab(slab.as_ptr() as u64);
            self.retire(thread, block.unwrap_or_else(|damage| fail(damage)));
            Ok(())
        })
    }
}
