//! Allocation in a domain, with all state inside the domain, so that blocks and bookkeeping are
//! discarded together when a request fails.
//!
//! Everything here runs in a request that holds the domain. Nothing in the domain is trusted:
//! a header is checked before its numbers are used, both directions of a link before one of them is
//! followed, and poison before its room is given out. So damage fails the request that finds it, and
//! cannot make the allocator write elsewhere or loop forever. Damage found on the way is a [`Damage`];
//! the caller makes the request fail with it.

mod bins;
mod bits;
mod check;
mod grow;
mod inner;
pub(crate) mod layout;
mod resize;
mod room;
mod slab;
mod span;
mod sums;
mod zeroed;

pub(crate) use check::PageCheck;
pub(crate) use layout::GRAIN;
pub(crate) use slab::CHUNK_OVERHEAD;
pub(crate) use zeroed::Taken;

use crate::failure::Kind;
use crate::shared::backend::Backend;
use layout::{
    BLOCK_HEADER, BlockHeader, DomainHeader, EXTENTS_MAX, FINGERPRINT, MAGIC, POISON, POISON_MAX,
    RED, RED_ZONE_MAX, RED_ZONE_MIN, State, extents_check, with_red_zone,
};
use span::Span;
use std::ptr::NonNull;
use vmsrs_protocol::control::Extent;
use vmsrs_protocol::{EXTENT_MAX_PAGES, PAGE_SIZE};

const PAGE: usize = PAGE_SIZE as usize;

/// No block is larger.
const SIZE_MAX: usize = EXTENT_MAX_PAGES as usize * PAGE;

/// From this size on a block changes its size in its place, and is copied and cleared only where that changes something.
const LARGE: usize = 1 << 16;

/// Something wrong in a domain, found before it could do harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) kind: Kind,
    pub(crate) address: u64,
}

impl Damage {
    const fn new(kind: Kind, address: u64) -> Self {
        Self { kind, address }
    }

    /// At an address that no heap has.
    pub(crate) const fn outside(address: u64) -> Self {
        Self::corrupt(address)
    }

    const fn corrupt(address: u64) -> Self {
        Self::new(Kind::HeapCorrupt, address)
    }
}

/// A block, free room or part of a slab: where its bytes are, and its header, which was found good.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    span: Span,
    address: u64,
    header: BlockHeader,
    state: State,
}

/// Whether a word of a red zone is whole.
///
/// # Safety
///
/// It lies in a domain that the request holds.
#[inline(always)]
unsafe fn is_red(word: u64) -> bool {
    const ZONE: u64 = u64::from_ne_bytes([RED; size_of::<u64>()]);
    // SAFETY: by the function's contract.
    unsafe { (word as *const u64).read_unaligned() == ZONE }
}

/// Whether a red zone is whole, which has at least one word.
///
/// # Safety
///
/// It lies in a domain that the request holds.
#[inline(always)]
unsafe fn is_red_zone(zone: u64, end: u64) -> bool {
    const WORD: u64 = size_of::<u64>() as u64;
    const { assert!(RED_ZONE_MIN == WORD as usize) };
    let more = end.wrapping_sub(zone).wrapping_sub(WORD);
    // Most have two words, which may overlap.
    if more <= WORD {
        // SAFETY: by the function's contract.
        unsafe { is_red(zone) && is_red(end - WORD) }
    } else if more <= 2 * WORD {
        // SAFETY: as above.
        unsafe { is_red(zone) && is_red(zone + WORD) && is_red(end - WORD) }
    } else {
        // SAFETY: as above.
        more <= end && unsafe { is_long_red_zone(zone, end) }
    }
}

/// The same for one of any length.
///
/// # Safety
///
/// As above.
#[cold]
unsafe fn is_long_red_zone(from: u64, to: u64) -> bool {
    let last = to - size_of::<u64>() as u64;
    let mut words = (from..last).step_by(size_of::<u64>()).chain([last]);
    // SAFETY: by the function's contract.
    words.all(|word| unsafe { is_red(word) })
}

/// Checks that all bytes from an address to another one are 0.
///
/// # Errors
///
/// [`Kind::HeapCorrupt`] at the first one that is not.
///
/// # Safety
///
/// They lie in a domain that the request holds.
pub(crate) unsafe fn check_zero(from: u64, to: u64) -> Result<(), Damage> {
    // SAFETY: by the function's contract.
    let bytes = unsafe { std::slice::from_raw_parts(from as *const u8, (to - from) as usize) };
    match first_other(bytes, 0) {
        None => Ok(()),
        Some(at) => Err(Damage::corrupt(from + at as u64)),
    }
}

/// Where the first byte is that is not `byte`.
fn first_other(bytes: &[u8], byte: u8) -> Option<usize> {
    let first = *bytes.first()?;
    // The C library compares many bytes at once.
    if first == byte && bytes[1..] == bytes[..bytes.len() - 1] {
        return None;
    }
    bytes.iter().position(|&one| one != byte)
}

impl Chunk {
    /// First byte after its room: the next chunk's header, or the extent's end.
    fn end(&self) -> u64 {
        self.address + self.header.room() as u64
    }

    /// Writes its header.
    fn mark(&mut self, size: usize, room: usize, state: State) {
        self.header = BlockHeader::new(self.address, size, room, state);
        self.state = state;
        let place = (self.address - BLOCK_HEADER as u64) as *mut BlockHeader;
        // SAFETY: a chunk of a domain that the request holds; its header is before its bytes.
        unsafe { place.write(self.header) };
    }

    fn slice(&self, from: usize, to: usize) -> &'static mut [u8] {
        let bytes = self.address as *mut u8;
        // SAFETY: callers stay within the chunk's room, which the checked header vouches for; what
        // reads and writes it besides is the server's code, which does not run meanwhile.
        unsafe { std::slice::from_raw_parts_mut(bytes.add(from), to - from) }
    }

    fn red_zone(&self) -> &'static mut [u8] {
        self.slice(self.header.size(), self.header.room())
    }

    /// What is poisoned of a freed block.
    fn poisoned(&self) -> &'static mut [u8] {
        self.slice(0, self.header.size().min(POISON_MAX))
    }

    /// How long the red zone of the live block at `address` is if its header is whole, and its room ends at `end`. Headers lie
    /// before `address` and at `end`, in one extent.
    #[expect(clippy::inline_always, reason = "for each block of an audit")]
    #[inline(always)]
    fn red_zone_of_live(address: u64, end: u64) -> Option<u64> {
        // SAFETY: a header lies before the address, in the extent that the request holds.
        let header = unsafe { ((address - BLOCK_HEADER as u64) as *const BlockHeader).read() };
        let is_live = header.room() == (end - address) as usize && header.is(address, State::Live);
        is_live.then(|| header.red_zone() as u64)
    }

    /// Whether that is a live block with room for a red zone, whatever is in it.
    #[expect(clippy::inline_always, reason = "for each block of an audit")]
    #[inline(always)]
    fn is_live(address: u64, end: u64) -> bool {
        Self::red_zone_of_live(address, end)
            .is_some_and(|zone| (RED_ZONE_MIN as u64..=end - address).contains(&zone))
    }

    /// Whether that is a live block whose red zone is whole, too; for the audit, which meets little else. What is wrong
    /// with others, [`Heap::chunk`] tells.
    #[expect(clippy::inline_always, reason = "for each block of an audit")]
    #[inline(always)]
    fn is_whole_live(address: u64, end: u64) -> bool {
        let zone = Self::red_zone_of_live(address, end);
        // SAFETY: the end of the block's room; where its header says more than that, the bytes lie in the extent as well.
        zone.is_some_and(|zone| unsafe { is_red_zone(end - zone, end) })
    }

    fn check_red_zone(&self) -> Result<(), Damage> {
        let size = self.header.size();
        // SAFETY: the end of the block's room.
        if unsafe { is_red_zone(self.address + size as u64, self.end()) } {
            return Ok(());
        }
        match first_other(self.red_zone(), RED) {
            None => Ok(()),
            Some(at) => Err(Damage::new(
                Kind::RedZone,
                self.address + (size + at) as u64,
            )),
        }
    }
}

/// The heap of a domain that the calling thread's request holds.
#[derive(Debug)]
pub(crate) struct Heap {
    header: *mut DomainHeader,
    base: u64,
    domain: u32,
    /// The heap was there when the request took the domain, or was made by the request.
    made: bool,
    /// Gives the heap more extents.
    backend: &'static dyn Backend,
}

impl Heap {
    /// # Safety
    ///
    /// `header` is the first page of domain `domain` of the app at `base`, with the whole first
    /// extent after it, and the calling thread's request holds the domain while this lives. `made`
    /// says whether the domain is known to have a heap: what the request may have overwritten in the
    /// domain itself cannot tell.
    pub(crate) unsafe fn new(
        header: NonNull<DomainHeader>,
        base: u64,
        domain: u32,
        made: bool,
        backend: &'static dyn Backend,
    ) -> Self {
        Self {
            header: header.as_ptr(),
            base,
            domain,
            made,
            backend,
        }
    }

    /// Makes a new domain usable. `first` is its first extent.
    ///
    /// # Errors
    ///
    /// [`Kind::HeapCorrupt`] when the domain has a heap and its header is damaged.
    pub(crate) fn prepare(&mut self, first: Extent) -> Result<(), Damage> {
        if self.ready()? {
            return Ok(());
        }
        // SAFETY: the header is ours by new()'s contract.
        unsafe {
            (*self.header).fingerprint = FINGERPRINT;
            (*self.header).domain = self.domain;
            (*self.header).magic = MAGIC;
        }
        self.made = true;
        self.add_extent(0, first)
    }

    /// Whether the domain has a heap. A header that a request has overwritten is found here, before
    /// anything in it is used.
    ///
    /// # Errors
    ///
    /// [`Kind::HeapCorrupt`].
    fn ready(&self) -> Result<bool, Damage> {
        // SAFETY: the header is ours by new()'s contract.
        let (magic, fingerprint, domain, count, check) = unsafe {
            (
                (*self.header).magic,
                (*self.header).fingerprint,
                (*self.header).domain,
                (*self.header).extent_count,
                (*self.header).extents_check,
            )
        };
        if magic == 0 && !self.made {
            return Ok(false);
        }
        let whole = magic == MAGIC
            && fingerprint == FINGERPRINT
            && domain == self.domain
            && (1..=EXTENTS_MAX as u32).contains(&count)
            && check == extents_check(domain, self.extents());
        if whole {
            Ok(true)
        } else {
            Err(Damage::corrupt(self.header as u64))
        }
    }

    fn extents(&self) -> &[Extent] {
        // SAFETY: the header is ours by new()'s contract; nothing grows while the borrow lives.
        unsafe {
            let extents = &(*self.header).extents;
            &extents[..((*self.header).extent_count as usize).min(EXTENTS_MAX)]
        }
    }

    fn spans(&self) -> impl Iterator<Item = Span> {
        let extents = self.extents().iter().enumerate();
        extents.map(|(index, &extent)| Span::new(self.base, index, extent))
    }

    #[inline]
    fn span_of(&self, address: u64) -> Option<Span> {
        let page = address.checked_sub(self.base)? / PAGE as u64;
        let (index, extent) = self
            .extents()
            .iter()
            .enumerate()
            .find(|(_, extent)| page.wrapping_sub(extent.page.into()) < extent.pages.into())?;
        Some(Span::new(self.base, index, *extent))
    }

    /// The chunk whose bytes begin at an address.
    fn chunk(span: Span, address: u64) -> Result<Chunk, Damage> {
        Self::chunk_at(span, address).ok_or(Damage::corrupt(address))
    }

    /// The same, without what is wrong.
    #[expect(
        clippy::inline_always,
        reason = "for each block that is taken or freed"
    )]
    #[inline(always)]
    fn chunk_at(span: Span, address: u64) -> Option<Chunk> {
        if !span.can_start(address) || !span.starts().get(address) {
            return None;
        }
        // SAFETY: can_start() says that a header before the address lies in the extent, which the
        // request holds.
        let header = unsafe { ((address - BLOCK_HEADER as u64) as *const BlockHeader).read() };
        let state = header.state(address)?;
        let inside = header.room() >= GRAIN && address + header.room() as u64 <= span.end();
        let zone = match state {
            State::Free => 0..=0,
            _ => RED_ZONE_MIN..=header.room(),
        };
        let is_whole = inside && zone.contains(&header.red_zone());
        is_whole.then_some(Chunk {
            span,
            address,
            header,
            state,
        })
    }

    /// The same for one in that state.
    #[expect(
        clippy::inline_always,
        reason = "for each block that is taken or freed"
    )]
    #[inline(always)]
    fn chunk_in(span: Span, address: u64, state: State) -> Option<Chunk> {
        Self::chunk_at(span, address).filter(|chunk| chunk.state == state)
    }

    /// Gives the heap an extent.
    fn add_extent(&mut self, index: usize, extent: Extent) -> Result<(), Damage> {
        // SAFETY: the header is ours by new()'s contract.
        unsafe {
            (*self.header).extents[index] = extent;
            (*self.header).extent_count = index as u32 + 1;
            (*self.header).extents_check = extents_check(self.domain, self.extents());
        }
        let span = Span::new(self.base, index, extent);
        span.begin();
        let address = span.first() + BLOCK_HEADER as u64;
        let room = (span.end() - address) as usize;
        self.make_room(span, address, room)
    }

    /// Takes a block of `size` bytes; `None` when there is no memory. `alignment` is a power of two
    /// up to 4096. `first` is the domain's first extent.
    ///
    /// # Errors
    ///
    /// [`Kind::HeapCorrupt`], [`Kind::UseAfterFree`]: damage on the way.
    pub(crate) fn allocate(
        &mut self,
        first: Extent,
        size: usize,
        alignment: usize,
    ) -> Result<Option<NonNull<u8>>, Damage> {
        let block = self.take(first, size, alignment)?;
        Ok(block.map(|(block, _)| block))
    }

    /// The same; tells from which address on the extent was known to be zero.
    fn take(
        &mut self,
        first: Extent,
        size: usize,
        alignment: usize,
    ) -> Result<Option<(NonNull<u8>, u64)>, Damage> {
        self.prepare(first)?;
        if size > SIZE_MAX {
            return Ok(None);
        }
        let alignment = alignment.max(GRAIN);
        let room = with_red_zone(size);
        let wanted = if alignment > GRAIN {
            room + alignment + 2 * GRAIN
        } else {
            room
        };
        let Some(found) = self.find(wanted)? else {
            return Ok(None);
        };
        let fresh = found.span.fresh()?;
        let mut block = self.carve(found, room, alignment)?;
        block.mark(size, block.header.room(), State::Live);
        block.red_zone().fill(RED);
        // SAFETY: the header is ours by new()'s contract.
        unsafe { (*self.header).blocks += 1 };
        let block = NonNull::new(block.address as *mut u8);
        Ok(block.map(|block| (block, fresh)))
    }

    /// The live block at `address`.
    fn live(&self, address: u64) -> Result<Chunk, Damage> {
        let foreign = Damage::new(Kind::ForeignFree, address);
        if !self.ready()? {
            return Err(foreign);
        }
        let span = self.span_of(address).ok_or(foreign)?;
        match Self::chunk_in(span, address, State::Live) {
            Some(block) => Ok(block),
            None => Err(Self::why_not_in_use(span, address)),
        }
    }

    /// What is wrong with what is given back at an address, which is not what can be given back so.
    #[cold]
    fn why_not_in_use(span: Span, address: u64) -> Damage {
        if !span.can_start(address) {
            return Damage::new(Kind::ForeignFree, address);
        }
        if !span.starts().get(address) {
            return Damage::new(Self::kind_of_bad_pointer(span, address), address);
        }
        match Self::chunk(span, address) {
            Ok(chunk) => Damage::new(Self::kind_of_free(&chunk), address),
            Err(damage) => damage,
        }
    }

    /// A pointer into the heap where no chunk begins: inside a block it is foreign; elsewhere it is
    /// memory that was given back before.
    fn kind_of_bad_pointer(span: Span, address: u64) -> Kind {
        let before = span.starts().before(address);
        let chunk = before.and_then(|before| Self::chunk(span, before).ok());
        chunk.map_or(Kind::DoubleFree, |chunk| Self::kind_of_free(&chunk))
    }

    /// What it is to give something back as what it is not.
    fn kind_of_free(chunk: &Chunk) -> Kind {
        match chunk.state {
            State::Live | State::Slab | State::Taken => Kind::ForeignFree,
            State::Freed | State::Free | State::Given => Kind::DoubleFree,
        }
    }

    /// Bytes of a live block, or of a chunk of a slab that is in use.
    ///
    /// # Errors
    ///
    /// The damage when it is not one.
    pub(crate) fn size(&self, address: u64) -> Result<usize, Damage> {
        let block = match self.live(address) {
            Ok(block) => block,
            Err(damage) => self.chunk_of_slab(address, State::Taken)?.ok_or(damage)?,
        };
        Ok(block.header.size())
    }

    /// The same, or `None` for an address that is not the heap's.
    ///
    /// # Errors
    ///
    /// The damage when it is the heap's and not one of these.
    pub(crate) fn size_inside(&self, address: u64) -> Result<Option<usize>, Damage> {
        if !self.ready()? || self.span_of(address).is_none() {
            return Ok(None);
        }
        self.size(address).map(Some)
    }

    /// Changes a block's size in its place if its room allows.
    ///
    /// # Errors
    ///
    /// The damage when it is not a live block, or its red zone is overwritten.
    pub(crate) fn resize(&mut self, address: u64, size: usize) -> Result<bool, Damage> {
        let mut block = self.live(address)?;
        let room = block.header.room();
        // A longer red zone would waste room for one more chunk.
        let red_zone = room.checked_sub(size);
        if !red_zone.is_some_and(|bytes| (RED_ZONE_MIN..=RED_ZONE_MAX).contains(&bytes)) {
            return self.stretch(block, size);
        }
        block.check_red_zone()?;
        block.mark(size, room, State::Live);
        block.red_zone().fill(RED);
        Ok(true)
    }

    /// Marks a block as freed and poisons it. It goes back to the heap with [`Heap::release`].
    ///
    /// # Errors
    ///
    /// The damage when it is not a live block, or its red zone is overwritten.
    pub(crate) fn retire(&mut self, address: u64) -> Result<(), Damage> {
        let mut block = self.live(address)?;
        block.check_red_zone()?;
        block.mark(block.header.size(), block.header.room(), State::Freed);
        block.poisoned().fill(POISON);
        Ok(())
    }

    /// Gives a retired block back to the heap, if it was not written to.
    ///
    /// # Errors
    ///
    /// [`Kind::UseAfterFree`], [`Kind::RedZone`], [`Kind::HeapCorrupt`].
    pub(crate) fn release(&mut self, address: u64) -> Result<(), Damage> {
        let corrupt = Damage::corrupt(address);
        if !self.ready()? {
            return Err(corrupt);
        }
        let span = self.span_of(address).ok_or(corrupt)?;
        let block = Self::chunk_in(span, address, State::Freed).ok_or(corrupt)?;
        if let Some(at) = first_other(block.poisoned(), POISON) {
            return Err(Damage::new(Kind::UseAfterFree, address + at as u64));
        }
        block.check_red_zone()?;
        self.merge(block)?;
        // SAFETY: the header is ours by new()'s contract.
        unsafe { (*self.header).blocks = (*self.header).blocks.saturating_sub(1) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_other_byte_is_found_at_any_place() {
        for length in 0..130 {
            let mut bytes = vec![RED; length];
            assert_eq!(first_other(&bytes, RED), None, "{length} bytes");
            for place in (0..length).rev() {
                bytes[place] = 0;
                assert_eq!(first_other(&bytes, RED), Some(place), "{length} bytes");
            }
            // All alike, but others.
            let first = (length != 0).then_some(0);
            assert_eq!(first_other(&bytes, RED), first, "{length} bytes");
        }
    }
}
