//! Allocation in a domain: dlmalloc over the domain's extents, with all state inside the domain, so
//! that blocks and bookkeeping are discarded together when a request fails.
//!
//! Everything here runs in a request that holds the domain. Damage found on the way is a
//! [`Damage`]; the caller makes the request fail with it.

use crate::app::App;
use crate::failure::Kind;
use crate::layout::{
    BITMAP_PER_PAGE, BLOCK_HEADER, BlockHeader, DomainHeader, EXTENTS_MAX, FINGERPRINT, GRAIN,
    MAGIC, POISON, POISON_MAX, RED, State, with_red_zone,
};
use dlmalloc::{Allocator, Dlmalloc};
use std::mem::size_of;
use std::ptr::{self, NonNull};
use vmsrs_protocol::control::Extent;
use vmsrs_protocol::{EXTENT_MAX_PAGES, EXTENT_UNIT_PAGES, PAGE_SIZE};

const PAGE: usize = PAGE_SIZE as usize;

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
}

/// Gives the heap its extents. Lies in the domain with the heap's state.
pub(crate) struct Growth {
    header: *mut DomainHeader,
}

// SAFETY: it names pages of a domain; whoever holds the domain's lock uses them alone.
unsafe impl Send for Growth {}

/// First byte of an extent that belongs to the heap, and how many there are.
fn heap_part(base: u64, index: usize, extent: Extent) -> (u64, usize) {
    let start = base + u64::from(extent.page) * PAGE as u64;
    let bytes = extent.pages as usize * PAGE;
    let front = bitmap_offset(index) + extent.pages as usize * BITMAP_PER_PAGE;
    let front = front.next_multiple_of(GRAIN);
    (start + front as u64, bytes - front)
}

/// Where an extent's bitmap begins.
const fn bitmap_offset(index: usize) -> usize {
    if index == 0 {
        size_of::<DomainHeader>().next_multiple_of(64)
    } else {
        0
    }
}

// SAFETY: alloc() gives memory of the domain that is in no other segment, for ever.
unsafe impl Allocator for Growth {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let none = (ptr::null_mut(), 0, 0);
        let Some(app) = App::at(self.header as u64) else {
            return none;
        };
        // SAFETY: the header lies in pages that the request holds, and the heap's own field is not
        // touched through this pointer.
        unsafe {
            let extents = &raw mut (*self.header).extents;
            let count = (*self.header).extent_count as usize;
            let mut total = 0;
            // An extent that no heap has yet: the first one, and what requests that failed left.
            for index in 0..count.min(EXTENTS_MAX) {
                let extent = (*extents)[index];
                total += extent.pages;
                let (start, bytes) = heap_part(app.base(), index, extent);
                if (*self.header).given >> index & 1 == 0 && bytes >= size {
                    (*self.header).given |= 1 << index;
                    return (start as *mut u8, bytes, 0);
                }
            }
            // Growing by what there is already keeps extents few and small domains small.
            let least = size.div_ceil(PAGE - BITMAP_PER_PAGE) as u32;
            let mut wanted = least.max(total.min(EXTENT_MAX_PAGES));
            for index in count..EXTENTS_MAX {
                if least > EXTENT_MAX_PAGES {
                    return none;
                }
                let domain = (*self.header).domain;
                let backend = app.backend();
                let pages = wanted.next_multiple_of(EXTENT_UNIT_PAGES);
                let found = match backend.extent(domain, index as u32, pages) {
                    Ok(extent) => extent,
                    // A nearly full window may have room for what is needed, if not for more.
                    Err(_) if wanted > least => {
                        wanted = least;
                        let pages = least.next_multiple_of(EXTENT_UNIT_PAGES);
                        match backend.extent(domain, index as u32, pages) {
                            Ok(extent) => extent,
                            Err(_) => return none,
                        }
                    }
                    Err(_) => return none,
                };
                (*extents)[index] = found;
                (*self.header).extent_count = index as u32 + 1;
                let (start, bytes) = heap_part(app.base(), index, found);
                if bytes >= size {
                    (*self.header).given |= 1 << index;
                    return (start as *mut u8, bytes, 0);
                }
            }
        }
        none
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        ptr::null_mut()
    }

    fn free_part(&self, _: *mut u8, _: usize, _: usize) -> bool {
        false
    }

    fn free(&self, _: *mut u8, _: usize) -> bool {
        false
    }

    fn can_release_part(&self, _: u32) -> bool {
        false
    }

    fn allocates_zeros(&self) -> bool {
        false
    }

    fn page_size(&self) -> usize {
        PAGE
    }
}

/// A block: where its bytes are, and its header.
#[derive(Clone, Copy)]
struct Block {
    address: u64,
    header: BlockHeader,
}

impl Block {
    /// # Safety
    ///
    /// 16 bytes before `address` can be read.
    unsafe fn at(address: u64) -> Self {
        let header = (address - BLOCK_HEADER as u64) as *const BlockHeader;
        Self {
            address,
            // SAFETY: by contract; 16-byte aligned since `address` is.
            header: unsafe { header.read() },
        }
    }

    fn bytes(self) -> *mut u8 {
        self.address as *mut u8
    }

    /// The pointer that the heap knows.
    fn chunk(self) -> *mut u8 {
        self.bytes()
            .wrapping_sub(self.header.alignment().max(BLOCK_HEADER))
    }

    /// # Safety
    ///
    /// The block's header is good.
    unsafe fn mark(self, state: State) {
        let header = BlockHeader::new(
            self.address,
            self.header.size(),
            self.header.alignment(),
            state,
        );
        // SAFETY: by contract the block is one, and its header is before it.
        unsafe { ((self.address - BLOCK_HEADER as u64) as *mut BlockHeader).write(header) };
    }

    /// # Safety
    ///
    /// The block's header is good.
    unsafe fn red_zone(self) -> &'static mut [u8] {
        let size = self.header.size();
        // SAFETY: by contract; the zone is part of the block.
        unsafe {
            std::slice::from_raw_parts_mut(self.bytes().add(size), with_red_zone(size) - size)
        }
    }

    /// # Safety
    ///
    /// The block's header is good.
    unsafe fn poisoned(self) -> &'static mut [u8] {
        let size = self.header.size().min(POISON_MAX);
        // SAFETY: by contract; a freed block's bytes belong to the heap.
        unsafe { std::slice::from_raw_parts_mut(self.bytes(), size) }
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
}

impl Heap {
    /// # Safety
    ///
    /// `header` is the first page of domain `domain` of the app at `base`, with the whole first
    /// extent behind it, and the calling thread's request holds the domain while this lives. `made`
    /// says whether the domain is known to have a heap: what the request may have overwritten in the
    /// domain itself cannot tell.
    pub(crate) unsafe fn new(
        header: NonNull<DomainHeader>,
        base: u64,
        domain: u32,
        made: bool,
    ) -> Self {
        Self {
            header: header.as_ptr(),
            base,
            domain,
            made,
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
            let mut heap = Dlmalloc::new_with_allocator(Growth {
                header: self.header,
            });
            heap.set_granularity(PAGE);
            heap.set_max_release_check_rate(0);
            (*self.header).heap.write(heap);
            (*self.header).fingerprint = FINGERPRINT;
            (*self.header).domain = self.domain;
            (*self.header).extents[0] = first;
            (*self.header).extent_count = 1;
            (*self.header).magic = MAGIC;
        }
        self.made = true;
        Ok(())
    }

    /// Whether the domain has a heap. A header that a request has overwritten is found here, before
    /// anything in it is used.
    ///
    /// # Errors
    ///
    /// [`Kind::HeapCorrupt`].
    fn ready(&self) -> Result<bool, Damage> {
        // SAFETY: the header is ours by new()'s contract.
        let (magic, fingerprint, domain, count) = unsafe {
            (
                (*self.header).magic,
                (*self.header).fingerprint,
                (*self.header).domain,
                (*self.header).extent_count,
            )
        };
        if magic == 0 && !self.made {
            return Ok(false);
        }
        let whole = magic == MAGIC
            && fingerprint == FINGERPRINT
            && domain == self.domain
            && (1..=EXTENTS_MAX as u32).contains(&count);
        if whole {
            Ok(true)
        } else {
            Err(Damage::new(Kind::HeapCorrupt, self.header as u64))
        }
    }

    fn blocks(&self) -> u64 {
        // SAFETY: the header is ours by new()'s contract.
        unsafe { (*self.header).blocks }
    }

    fn dlmalloc(&mut self) -> &mut Dlmalloc<Growth> {
        // SAFETY: callers have found the header ready(), so prepare() has initialised it; ours by
        // new()'s contract.
        unsafe { (*self.header).heap.assume_init_mut() }
    }

    fn extents(&self) -> &[Extent] {
        // SAFETY: the header is ours by new()'s contract; nothing grows while the borrow lives.
        unsafe {
            let extents = &(*self.header).extents;
            &extents[..((*self.header).extent_count as usize).min(EXTENTS_MAX)]
        }
    }

    /// The word and the bit of the bitmap for an address, if the heap can have a block there.
    fn bit(&self, address: u64) -> Option<(*mut u64, u32)> {
        let (index, extent) = self.extents().iter().enumerate().find(|(_, extent)| {
            let start = self.base + u64::from(extent.page) * PAGE as u64;
            (start..start + u64::from(extent.pages) * PAGE as u64).contains(&address)
        })?;
        let (heap, _) = heap_part(self.base, index, *extent);
        if address < heap + BLOCK_HEADER as u64 || !address.is_multiple_of(GRAIN as u64) {
            return None;
        }
        let start = self.base + u64::from(extent.page) * PAGE as u64;
        let grain = (address - start) / GRAIN as u64;
        let words = (start + bitmap_offset(index) as u64) as *mut u64;
        Some((
            words.wrapping_add((grain / 64) as usize),
            (grain % 64) as u32,
        ))
    }

    /// Takes a block of `size` bytes; `None` when there is no memory. `alignment` is a power of two
    /// up to 4096. `first` is the domain's first extent.
    ///
    /// # Errors
    ///
    /// [`Kind::HeapCorrupt`] when the header is damaged or the heap gives what cannot be.
    pub(crate) fn allocate(
        &mut self,
        first: Extent,
        size: usize,
        alignment: usize,
    ) -> Result<Option<NonNull<u8>>, Damage> {
        self.prepare(first)?;
        if size > EXTENT_MAX_PAGES as usize * PAGE {
            return Ok(None);
        }
        let front = alignment.max(BLOCK_HEADER);
        let total = front + with_red_zone(size);
        // SAFETY: the alignment is a power of two.
        let chunk = unsafe { self.dlmalloc().c_memalign(front, total) };
        if chunk.is_null() {
            return Ok(None);
        }
        let bytes = chunk.wrapping_add(front);
        let address = bytes as u64;
        let corrupt = Damage::new(Kind::HeapCorrupt, address);
        let (word, bit) = self.bit(address).ok_or(corrupt)?;
        let header = BlockHeader::new(address, size, alignment.max(GRAIN), State::Live);
        // SAFETY: bit() found the address in the domain's heap, its word in the bitmap.
        unsafe {
            if *word >> bit & 1 != 0 {
                return Err(corrupt);
            }
            *word |= 1 << bit;
            let block = Block { address, header };
            block.mark(State::Live);
            block.red_zone().fill(RED);
            (*self.header).blocks += 1;
        }
        Ok(NonNull::new(bytes))
    }

    /// The live block at `address`.
    fn live(&self, address: u64) -> Result<Block, Damage> {
        let foreign = Damage::new(Kind::ForeignFree, address);
        if !self.ready()? {
            return Err(foreign);
        }
        let (word, bit) = self.bit(address).ok_or(foreign)?;
        // SAFETY: bit() found the address in the domain's heap, its word in the bitmap.
        unsafe {
            if *word >> bit & 1 == 0 {
                return Err(Damage::new(self.kind_of_stranger(address), address));
            }
            let block = Block::at(address);
            if block.header.is(address, State::Freed) {
                return Err(Damage::new(Kind::DoubleFree, address));
            }
            if !block.header.is(address, State::Live) {
                return Err(Damage::new(Kind::HeapCorrupt, address));
            }
            Ok(block)
        }
    }

    /// A pointer into the heap where no block begins: inside of one it is foreign; elsewhere it is
    /// memory that was given back before.
    fn kind_of_stranger(&self, address: u64) -> Kind {
        let mut before = address;
        while let Some((word, bit)) = self.bit(before) {
            // SAFETY: bit() found the word in the bitmap.
            if unsafe { *word } >> bit & 1 != 0 {
                // SAFETY: a block begins here, in the domain's heap.
                let block = unsafe { Block::at(before) };
                let inside = block.header.is(before, State::Live)
                    && address < before + block.header.size() as u64;
                return if inside {
                    Kind::ForeignFree
                } else {
                    Kind::DoubleFree
                };
            }
            before -= GRAIN as u64;
        }
        Kind::DoubleFree
    }

    /// Bytes of a live block.
    ///
    /// # Errors
    ///
    /// The damage when it is none.
    pub(crate) fn size(&self, address: u64) -> Result<usize, Damage> {
        self.live(address).map(|block| block.header.size())
    }

    /// Changes a block's size in its place if its room allows.
    ///
    /// # Errors
    ///
    /// The damage when it is no live block, or overwritten behind.
    pub(crate) fn resize(&mut self, address: u64, size: usize) -> Result<bool, Damage> {
        let block = self.live(address)?;
        if with_red_zone(size) != with_red_zone(block.header.size()) {
            return Ok(false);
        }
        // SAFETY: live() says that the block is good.
        unsafe {
            check_red_zone(block)?;
            let alignment = block.header.alignment();
            let header = BlockHeader::new(address, size, alignment, State::Live);
            let block = Block { address, header };
            block.mark(State::Live);
            block.red_zone().fill(RED);
        }
        Ok(true)
    }

    /// Marks a block as freed and poisons it. It goes back to the heap with [`Heap::release`].
    ///
    /// # Errors
    ///
    /// The damage when it is no live block, or overwritten behind.
    pub(crate) fn retire(&mut self, address: u64) -> Result<(), Damage> {
        let block = self.live(address)?;
        // SAFETY: live() says that the block is good.
        unsafe {
            check_red_zone(block)?;
            block.mark(State::Freed);
            block.poisoned().fill(POISON);
        }
        Ok(())
    }

    /// Gives a retired block back to the heap, if nobody has written to it.
    ///
    /// # Errors
    ///
    /// [`Kind::UseAfterFree`], [`Kind::RedZone`], [`Kind::HeapCorrupt`].
    pub(crate) fn release(&mut self, address: u64) -> Result<(), Damage> {
        let corrupt = Damage::new(Kind::HeapCorrupt, address);
        if !self.ready()? {
            return Err(corrupt);
        }
        let (word, bit) = self.bit(address).ok_or(corrupt)?;
        // SAFETY: bit() found the address in the domain's heap; it was a block when it was retired,
        // and its header is checked before the rest is used.
        unsafe {
            let block = Block::at(address);
            if *word >> bit & 1 == 0 || !block.header.is(address, State::Freed) {
                return Err(corrupt);
            }
            if let Some(at) = block.poisoned().iter().position(|&byte| byte != POISON) {
                return Err(Damage::new(Kind::UseAfterFree, address + at as u64));
            }
            check_red_zone(block)?;
            *word &= !(1 << bit);
            (*self.header).blocks = (*self.header).blocks.saturating_sub(1);
            self.dlmalloc().c_free(block.chunk());
        }
        Ok(())
    }

    /// Checks one block; [`Heap::check`] has checked the header.
    ///
    /// # Errors
    ///
    /// The damage.
    pub(crate) fn check_block(&self, address: u64) -> Result<(), Damage> {
        let corrupt = Damage::new(Kind::HeapCorrupt, address);
        let (word, bit) = self.bit(address).ok_or(corrupt)?;
        // SAFETY: bit() found the address in the domain's heap, its word in the bitmap.
        unsafe {
            if *word >> bit & 1 == 0 {
                // Freed and given back meanwhile.
                return Ok(());
            }
            let block = Block::at(address);
            let known =
                block.header.is(address, State::Live) || block.header.is(address, State::Freed);
            if !known {
                return Err(corrupt);
            }
            check_red_zone(block)
        }
    }

    /// Checks the domain's header, and every block if there are at most `limit`. Returns whether it
    /// was every block.
    ///
    /// # Errors
    ///
    /// The first damage found.
    pub(crate) fn check(&self, limit: u64) -> Result<bool, Damage> {
        if !self.ready()? {
            return Ok(true);
        }
        if self.blocks() > limit {
            return Ok(false);
        }
        let mut left = self.blocks();
        for (index, extent) in self.extents().iter().enumerate() {
            if left == 0 {
                break;
            }
            let start = self.base + u64::from(extent.page) * PAGE as u64;
            let words = (start + bitmap_offset(index) as u64) as *const u64;
            for word in 0..extent.pages as usize * BITMAP_PER_PAGE / 8 {
                // SAFETY: inside of the extent's bitmap.
                let mut bits = unsafe { words.add(word).read() };
                while bits != 0 {
                    let grain = word as u64 * 64 + u64::from(bits.trailing_zeros());
                    bits &= bits - 1;
                    self.check_block(start + grain * GRAIN as u64)?;
                    left = left.saturating_sub(1);
                }
                if left == 0 {
                    break;
                }
            }
        }
        Ok(true)
    }
}

/// # Safety
///
/// The block's header is good.
unsafe fn check_red_zone(block: Block) -> Result<(), Damage> {
    // SAFETY: passed on to the caller.
    let zone = unsafe { block.red_zone() };
    match zone.iter().position(|&byte| byte != RED) {
        None => Ok(()),
        Some(at) => Err(Damage::new(
            Kind::RedZone,
            block.address + (block.header.size() + at) as u64,
        )),
    }
}
