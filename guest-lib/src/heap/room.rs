//! Free room: its lists, how blocks are cut from it, and how they become part of it again.

use super::bins::{Bins, list_for, list_of};
use super::layout::{BLOCK_HEADER, BlockHeader, GRAIN, POISON, State};
use super::slab::is_mark;
use super::span::Span;
use super::{Chunk, Damage, Heap, first_other};
use crate::failure::Kind;

const STEP: u64 = GRAIN as u64;

/// Rooms that are looked at in the list in which some are too small.
const LOOKS: usize = 64;

/// The two links of a room, in its first bytes.
#[derive(Clone, Copy, Debug)]
enum Link {
    Next = 0,
    Previous = 8,
}

/// Bits of a link's word that hold the address; the others are bound to it.
const ADDRESS_BITS: u32 = 48;

/// The word of a link at `place` to `target` (an address, or 0).
fn word(place: u64, target: u64) -> u64 {
    let mixed = (place ^ target.rotate_left(23)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    target | (mixed >> ADDRESS_BITS) << ADDRESS_BITS
}

/// The list of a room of that many bytes.
#[inline]
fn list(room: usize) -> usize {
    list_of((room + BLOCK_HEADER) / GRAIN)
}

impl Chunk {
    /// Where one of its links leads; it is free room. Links lie where a block that was given back had
    /// its first bytes.
    fn link(&self, link: Link) -> Result<u64, Damage> {
        let place = self.address + link as u64;
        // SAFETY: a room has at least 16 bytes.
        let found = unsafe { (place as *const u64).read() };
        let target = found & ((1 << ADDRESS_BITS) - 1);
        if word(place, target) == found {
            Ok(target)
        } else {
            Err(Damage::new(Kind::UseAfterFree, place))
        }
    }

    fn set_link(&self, link: Link, target: u64) {
        let place = self.address + link as u64;
        // SAFETY: as in link().
        unsafe { (place as *mut u64).write(word(place, target)) };
    }
}

impl Heap {
    fn bins(&self) -> &Bins {
        // SAFETY: callers have found the header ready(); ours by new()'s contract.
        unsafe { &(*self.header).bins }
    }

    fn set_head(&mut self, list: usize, address: u64) {
        // SAFETY: as in bins().
        unsafe { (*self.header).bins.set_head(list, address) };
    }

    /// The free room at an address that something in the heap names.
    fn room_at(&self, address: u64) -> Result<Chunk, Damage> {
        self.span_of(address)
            .and_then(|span| Self::chunk_in(span, address, State::Free))
            .ok_or(Damage::corrupt(address))
    }

    /// The first room of a list.
    fn head(&self, of: usize) -> Result<Option<Chunk>, Damage> {
        let address = self.bins().head(of);
        if address == 0 {
            return Ok(None);
        }
        let room = self.room_at(address)?;
        if list(room.header.room()) != of || room.link(Link::Previous)? != 0 {
            return Err(Damage::corrupt(address));
        }
        Ok(Some(room))
    }

    /// The neighbours of a room in its list, if they link back.
    fn neighbours(&self, room: &Chunk) -> Result<(Option<Chunk>, Option<Chunk>), Damage> {
        let corrupt = Damage::corrupt(room.address);
        let previous = match room.link(Link::Previous)? {
            0 if self.bins().head(list(room.header.room())) != room.address => {
                return Err(corrupt);
            }
            0 => None,
            address => Some(self.room_at(address)?),
        };
        let next = match room.link(Link::Next)? {
            0 => None,
            address => Some(self.room_at(address)?),
        };
        let back = previous.map(|previous| previous.link(Link::Next));
        let forth = next.map(|next| next.link(Link::Previous));
        for link in [back, forth].into_iter().flatten() {
            if link? != room.address {
                return Err(corrupt);
            }
        }
        Ok((previous, next))
    }

    /// Takes a room out of its list.
    pub(super) fn unlink(&mut self, room: &Chunk) -> Result<(), Damage> {
        let (previous, next) = self.neighbours(room)?;
        let address = |chunk: Option<Chunk>| chunk.map_or(0, |chunk| chunk.address);
        if let Some(next) = next {
            next.set_link(Link::Previous, address(previous));
        }
        match previous {
            Some(previous) => previous.set_link(Link::Next, address(next)),
            None => self.set_head(list(room.header.room()), address(next)),
        }
        Ok(())
    }

    /// Makes `room` bytes from `address` on free room. Its header and its links are not counted as
    /// filled.
    pub(super) fn make_room(
        &mut self,
        span: Span,
        address: u64,
        room: usize,
    ) -> Result<(), Damage> {
        let of = list(room);
        let head = self.head(of)?;
        span.touch(address + STEP)?;
        span.fills()
            .clear_range(address - BLOCK_HEADER as u64, address + STEP);
        span.starts().set(address);
        let mut chunk = Chunk {
            span,
            address,
            header: BlockHeader::new(address, 0, room, State::Free),
            state: State::Free,
        };
        chunk.mark(0, room, State::Free);
        chunk.set_link(Link::Previous, 0);
        chunk.set_link(Link::Next, head.map_or(0, |head| head.address));
        if let Some(head) = head {
            head.set_link(Link::Previous, address);
        }
        self.set_head(of, address);
        Ok(())
    }

    /// Finds a room of at least `bytes`, and takes it out of its list. `None` when there is no memory.
    #[expect(clippy::inline_always, reason = "for each block that is taken")]
    #[inline(always)]
    pub(super) fn find(&mut self, bytes: usize) -> Result<Option<Chunk>, Damage> {
        let mut found = self.look(bytes)?;
        if found.is_none() && self.grow(bytes)? {
            found = self.look(bytes)?;
        }
        if let Some(found) = &found {
            self.unlink(found)?;
        }
        Ok(found)
    }

    fn look(&self, bytes: usize) -> Result<Option<Chunk>, Damage> {
        let grains = (bytes + BLOCK_HEADER) / GRAIN;
        let fits = |room: &Chunk| room.header.room() >= bytes;
        // Best is one of about this size; any from the next list on will do.
        if let Some(room) = self.head(list_of(grains))?.filter(fits) {
            return Ok(Some(room));
        }
        if let Some((list, _)) = self.bins().first_from(list_for(grains)) {
            let head = self.head(list)?;
            // The map says that there is one.
            return head.map(Some).ok_or(Damage::corrupt(self.header as u64));
        }
        let mut at = self.head(list_of(grains))?;
        for _ in 0..LOOKS {
            match at {
                Some(room) if !fits(&room) => {
                    at = match room.link(Link::Next)? {
                        0 => None,
                        next => Some(self.room_at(next)?),
                    }
                }
                other => return Ok(other),
            }
        }
        Ok(None)
    }

    /// Cuts a chunk of `room` bytes, aligned, from a room that is in no list; what is left over is room
    /// again.
    #[expect(clippy::inline_always, reason = "for each block that is taken")]
    #[inline(always)]
    pub(super) fn carve(
        &mut self,
        from: Chunk,
        room: usize,
        alignment: usize,
    ) -> Result<Chunk, Damage> {
        let span = from.span;
        let (alignment, header) = (alignment as u64, BLOCK_HEADER as u64);
        let mut address = from.address.next_multiple_of(alignment);
        // What is left over in front is nothing, or has room for a header and links.
        while address != from.address && address - from.address < 2 * STEP {
            address += alignment;
        }
        let end = from.end();
        let left = end.checked_sub(address + room as u64);
        let left = left.ok_or(Damage::corrupt(from.address))?;
        let after = (left >= 2 * STEP).then_some(address + room as u64 + header);
        let room = after.map_or(end - address, |_| room as u64);
        let taken = address - header..after.unwrap_or(address + room);
        check_fill(
            span,
            taken.start.max(from.address),
            end.min(taken.end + STEP),
        )?;
        span.fills().clear_range(taken.start, taken.end);
        span.touch(taken.end)?;
        if address != from.address {
            let front = address - header - from.address;
            self.make_room(span, from.address, front as usize)?;
        }
        if let Some(after) = after {
            self.make_room(span, after, (end - after) as usize)?;
        }
        span.starts().set(address);
        Ok(Chunk {
            span,
            address,
            // Its size is not known here.
            header: BlockHeader::new(address, 0, room as usize, State::Free),
            state: State::Live,
        })
    }

    /// Makes a freed block, whose poison is whole, part of the free room around it.
    pub(super) fn merge(&mut self, block: Chunk) -> Result<(), Damage> {
        let span = block.span;
        let header = BLOCK_HEADER as u64;
        let mut start = block.address;
        let mut end = block.end();
        let before = match span.starts().before(block.address) {
            Some(address) => Some(Self::chunk(span, address)?),
            None => None,
        };
        if before.is_some_and(|before| before.end() + header != block.address) {
            return Err(Damage::corrupt(block.address));
        }
        let after = match block.end() {
            end if end == span.end() => None,
            end => Some(Self::chunk(span, end + header)?),
        };
        // All of the block that retire() has poisoned in whole units.
        let poisoned = (block.poisoned().len() / GRAIN * GRAIN) as u64;
        span.fills()
            .set_range(block.address, block.address + poisoned);
        if let Some(after) = after.filter(|after| after.state == State::Free) {
            self.unlink(&after)?;
            span.starts().clear(after.address);
            fill(span, after.address - header, after.address + STEP);
            end = after.end();
        }
        if let Some(before) = before.filter(|before| before.state == State::Free) {
            self.unlink(&before)?;
            span.starts().clear(block.address);
            fill(span, block.address - header, block.address);
            start = before.address;
        }
        self.make_room(span, start, (end - start) as usize)
    }

    /// Checks a room's links themselves. Whoever follows them looks at both ends.
    pub(super) fn check_links(&self, room: &Chunk) -> Result<(), Damage> {
        room.link(Link::Next)?;
        let is_first = room.link(Link::Previous)? == 0;
        if is_first && self.bins().head(list(room.header.room())) != room.address {
            return Err(Damage::corrupt(room.address));
        }
        Ok(())
    }

    /// Checks the lists' heads.
    pub(super) fn check_heads(&self) -> Result<(), Damage> {
        let corrupt = Damage::corrupt(self.header as u64);
        let lists = self.bins().lists().ok_or(corrupt)?;
        for list in lists {
            self.head(list)?.ok_or(corrupt)?;
        }
        Ok(())
    }
}

/// Fills free room, whole units.
pub(super) fn fill(span: Span, from: u64, to: u64) {
    // SAFETY: callers give room of the heap that nobody else uses.
    unsafe { std::ptr::write_bytes(from as *mut u8, POISON, (to - from) as usize) };
    span.fills().set_range(from, to);
}

/// Checks what is filled in a range.
pub(super) fn check_fill(span: Span, from: u64, to: u64) -> Result<(), Damage> {
    let fills = span.fills();
    let mut at = from;
    while let Some(place) = fills.next(at, to) {
        at = fills.next_clear(place, to);
        // SAFETY: the bits stand for these bytes of the extent, which the request holds.
        let filled =
            unsafe { std::slice::from_raw_parts(place as *const u8, (at - place) as usize) };
        if let Some(wrong) = first_other(filled, POISON).filter(|_| !is_mark(span, place, at)) {
            return Err(Damage::new(Kind::UseAfterFree, place + wrong as u64));
        }
    }
    Ok(())
}
