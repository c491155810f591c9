//! Slabs: room that the server divides itself, into chunks of one size. The server says which of them are in use.
//!
//! ```text
//! slab:   head | chunk | chunk | ...     each with a BlockHeader before it
//! taken:  bytes | red zone, to the end of the chunk
//! given:  what the server keeps | poison | red zone
//! ```
//!
//! All of them have their bits in *starts* for as long as there is the slab: taking and giving a chunk write to the chunk
//! alone, and the audit finds it like a block. A zone can be longer here than that of a block, and lie in a page that no
//! chunk begins in or soon after: *fills* has the bit of such a page's first grain, which makes the audit look.

use super::layout::{
    BLOCK_HEADER, BlockHeader, GRAIN, POISON, POISON_MAX, REACH, RED, RED_ZONE_MIN, State,
};
use super::span::Span;
use super::{Chunk, Damage, Heap, PAGE, first_other, is_red, is_red_zone};
use crate::failure::Kind;
use std::ptr::NonNull;
use vmsrs_protocol::EXTENT_MAX_PAGES;
use vmsrs_protocol::control::Extent;

/// Bytes of each chunk of a slab that the heap has: a header and the shortest red zone.
///
/// cbindgen:ignore
pub(crate) const CHUNK_OVERHEAD: usize = BLOCK_HEADER + RED_ZONE_MIN;

/// Least room of a slab's head.
const HEAD_ROOM: usize = GRAIN;

/// Longest zone that is written and checked, besides the last bytes of the chunk: more would draft pages that the request
/// never touched.
const ZONE_MAX: usize = POISON_MAX;

/// Where the zone ends that follows `size` bytes of a chunk; the shortest red zone comes after it, perhaps with a gap.
fn zone_end(size: usize, room: usize) -> usize {
    (size + ZONE_MAX).min(room - RED_ZONE_MIN)
}

impl Chunk {
    pub(super) fn is_of_slab(&self) -> bool {
        matches!(self.state, State::Taken | State::Given)
    }

    /// Marks a chunk of a slab, and fills its zone.
    fn set(&mut self, size: usize, state: State) {
        let room = self.header.room();
        self.mark(size, room, state);
        let byte = if state == State::Taken { RED } else { POISON };
        self.slice(size, zone_end(size, room)).fill(byte);
    }

    /// Checks the zones of a chunk of a slab.
    pub(super) fn check_zones(&self) -> Result<(), Damage> {
        let (size, room) = (self.header.size(), self.header.room());
        let (byte, kind) = match self.state {
            State::Given => (POISON, Kind::UseAfterFree),
            _ => (RED, Kind::RedZone),
        };
        let check = |from: usize, to: usize, byte, kind| {
            let other = first_other(self.slice(from, to), byte);
            let at = |other: usize| self.address + (from + other) as u64;
            other.map_or(Ok(()), |other| Err(Damage::new(kind, at(other))))
        };
        check(size, zone_end(size, room), byte, kind)?;
        check(room - RED_ZONE_MIN, room, RED, Kind::RedZone)
    }

    /// Whether there is a chunk of a slab at `address` whose header and zones are whole, and its room ends at `end`. As
    /// [`Chunk::is_whole_live`] for blocks.
    #[expect(clippy::inline_always, reason = "for each chunk of an audit")]
    #[inline(always)]
    pub(super) fn is_whole_of_slab(address: u64, end: u64) -> bool {
        // SAFETY: a header lies before the address, in the extent that the request holds.
        let header = unsafe { ((address - BLOCK_HEADER as u64) as *const BlockHeader).read() };
        let room = header.room();
        let is_zone = (RED_ZONE_MIN..=room).contains(&header.red_zone());
        if room != (end - address) as usize || !is_zone {
            return false;
        }
        let size = header.size();
        let byte = match header {
            header if header.is(address, State::Taken) => RED,
            header if header.is(address, State::Given) => POISON,
            _ => return false,
        };
        let zone = address + size as u64;
        if byte == RED && room - size <= 3 * RED_ZONE_MIN {
            // SAFETY: the end of the chunk's room, with at least the shortest red zone.
            return unsafe { is_red_zone(zone, end) };
        }
        // SAFETY: in the chunk's room, and what reads and writes it besides is the server's code, which does not run meanwhile.
        unsafe {
            let length = zone_end(size, room) - size;
            let bytes = std::slice::from_raw_parts(zone as *const u8, length);
            is_red(end - RED_ZONE_MIN as u64) && first_other(bytes, byte).is_none()
        }
    }
}

impl Heap {
    /// Takes room for a slab of `chunks` chunks, one every `chunk_bytes` bytes (a multiple of 16, more than
    /// [`CHUNK_OVERHEAD`]). All of them are given; the first `keep` bytes of each are the server's. Returns the first
    /// one; `None` when there is no memory.
    ///
    /// # Errors
    ///
    /// [`Kind::HeapCorrupt`], [`Kind::UseAfterFree`]: damage on the way.
    pub(crate) fn allocate_slab(
        &mut self,
        first: Extent,
        chunk_bytes: usize,
        chunks: usize,
        keep: usize,
    ) -> Result<Option<NonNull<u8>>, Damage> {
        self.prepare(first)?;
        let bytes = chunk_bytes.checked_mul(chunks);
        let Some(bytes) = bytes.filter(|&bytes| bytes <= EXTENT_MAX_PAGES as usize * PAGE) else {
            return Ok(None);
        };
        let Some(found) = self.find(HEAD_ROOM + bytes)? else {
            return Ok(None);
        };
        let mut head = self.carve(found, HEAD_ROOM + bytes, GRAIN)?;
        let (span, end) = (head.span, head.end());
        // It has what is too small for free room.
        let room = head.header.room() - bytes;
        head.mark(0, room, State::Slab);
        head.red_zone().fill(RED);
        let first = head.end() + BLOCK_HEADER as u64;
        let room = chunk_bytes - BLOCK_HEADER;
        for address in (first..end).step_by(chunk_bytes) {
            let mut chunk = Chunk {
                span,
                address,
                header: BlockHeader::new(address, keep, room, State::Given),
                state: State::Given,
            };
            chunk.set(keep, State::Given);
            chunk.slice(room - RED_ZONE_MIN, room).fill(RED);
            span.starts().set(address);
        }
        for page in (first.next_multiple_of(PAGE as u64)..end).step_by(PAGE) {
            if span
                .starts()
                .next(page, page + PAGE as u64 + REACH)
                .is_none()
            {
                span.fills().set(page);
            }
        }
        // SAFETY: the header is ours by new()'s contract.
        unsafe { (*self.header).blocks += 1 + chunks as u64 };
        Ok(NonNull::new(first as *mut u8))
    }

    /// Makes a slab one block, whatever state its chunks are in; returns that. `first` is its first chunk.
    ///
    /// # Errors
    ///
    /// The damage when it is not one, or was written to where nobody may.
    pub(crate) fn join_slab(&mut self, first: u64) -> Result<u64, Damage> {
        let foreign = Damage::new(Kind::ForeignFree, first);
        if !self.ready()? {
            return Err(foreign);
        }
        let span = self.span_of(first).ok_or(foreign)?;
        let chunk = Self::chunk_at(span, first).filter(Chunk::is_of_slab);
        let mut chunk = chunk.ok_or_else(|| Self::why_not_in_use(span, first))?;
        let before = span.starts().before(first);
        let mut head = before
            .and_then(|before| Self::chunk_in(span, before, State::Slab))
            .filter(|head| head.end() + BLOCK_HEADER as u64 == first)
            .ok_or(foreign)?;
        head.check_red_zone()?;
        let mut chunks = 1;
        let end = loop {
            chunk.check_zones()?;
            let end = chunk.end();
            if end == span.end() {
                break end;
            }
            // After the last one comes anything else, which may be the head of another slab.
            match Self::chunk(span, end + BLOCK_HEADER as u64)? {
                next if next.is_of_slab() => chunk = next,
                _ => break end,
            }
            chunks += 1;
        };
        span.starts().clear_range(first, end);
        span.fills().clear_range(first, end);
        let room = (end - head.address) as usize;
        // The red zone of the last chunk is the block's.
        head.mark(room - RED_ZONE_MIN, room, State::Live);
        // SAFETY: the header is ours by new()'s contract.
        unsafe { (*self.header).blocks = (*self.header).blocks.saturating_sub(chunks) };
        Ok(head.address)
    }

    /// The chunk of a slab at an address, in that state.
    pub(super) fn chunk_of_slab(
        &self,
        address: u64,
        state: State,
    ) -> Result<Option<Chunk>, Damage> {
        if !self.ready()? {
            return Ok(None);
        }
        let span = self.span_of(address);
        Ok(span.and_then(|span| Self::chunk_in(span, address, state)))
    }

    /// Takes a given chunk, of which `size` bytes are used. False if that is more than it has.
    ///
    /// # Errors
    ///
    /// [`Kind::HeapCorrupt`] if there is no such chunk, or it is in use: a list of the server is wrong.
    /// [`Kind::UseAfterFree`], [`Kind::RedZone`] if it was written to.
    pub(crate) fn take_chunk(&mut self, address: u64, size: usize) -> Result<bool, Damage> {
        let chunk = self.chunk_of_slab(address, State::Given)?;
        let mut chunk = chunk.ok_or(Damage::corrupt(address))?;
        if size.saturating_add(RED_ZONE_MIN) > chunk.header.room() {
            return Ok(false);
        }
        chunk.check_zones()?;
        chunk.set(size, State::Taken);
        Ok(true)
    }

    /// Gives a taken chunk back, but for its first `keep` bytes. False if these are more than it has.
    ///
    /// # Errors
    ///
    /// [`Kind::DoubleFree`], [`Kind::ForeignFree`], [`Kind::HeapCorrupt`] if it is not a taken chunk;
    /// [`Kind::RedZone`].
    pub(crate) fn give_chunk(&mut self, address: u64, keep: usize) -> Result<bool, Damage> {
        let Some(mut chunk) = self.chunk_of_slab(address, State::Taken)? else {
            let foreign = Damage::new(Kind::ForeignFree, address);
            let span = self.span_of(address).ok_or(foreign)?;
            return Err(Self::why_not_in_use(span, address));
        };
        if keep.saturating_add(RED_ZONE_MIN) > chunk.header.room() {
            return Ok(false);
        }
        chunk.check_zones()?;
        chunk.set(keep, State::Given);
        Ok(true)
    }

    /// Checks the chunk of a slab that a page lies in, if *fills* says that there is one.
    pub(super) fn check_marked(span: Span, page: u64) -> Result<(), Damage> {
        if !span.fills().get(page) {
            return Ok(());
        }
        let before = span.starts().before(page);
        match before.map(|before| Self::chunk(span, before)) {
            Some(Ok(chunk)) if chunk.is_of_slab() => chunk.check_zones(),
            Some(Err(damage)) => Err(damage),
            _ => Ok(()),
        }
    }
}

/// Whether a bit of *fills* is a mark in a chunk of a slab.
#[cold]
pub(super) fn is_mark(span: Span, place: u64, end: u64) -> bool {
    let before = span.starts().before(place);
    let chunk = before.and_then(|before| Heap::chunk_at(span, before));
    place.is_multiple_of(PAGE as u64)
        && end - place == GRAIN as u64
        && chunk.is_some_and(|chunk| chunk.is_of_slab() && end <= chunk.end())
}

#[cfg(test)]
mod tests {
    use super::super::PageCheck;
    use super::*;
    use crate::mock::MockBackend;
    use crate::{Domain, Error, thread};
    use proptest::prelude::*;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn domain() -> &'static Domain {
        static APP: OnceLock<&crate::App> = OnceLock::new();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let app = APP.get_or_init(|| MockBackend::app("slabs", |_| ()));
        let name = NUMBER.fetch_add(1, Ordering::SeqCst).to_string();
        app.domain(&name).unwrap()
    }

    fn with_heap(work: impl FnOnce(&'static Domain, &mut Heap)) {
        let domain = domain();
        let outcome = domain.run(|_| {
            domain.allocate(40, 16)?;
            work(domain, &mut thread::current().unwrap().state().heap(domain));
            Ok::<_, Error>(())
        });
        outcome.unwrap();
    }

    /// A slab, and what a server does with it.
    #[derive(Clone, Debug)]
    struct Case {
        chunk_bytes: usize,
        chunks: usize,
        keep: usize,
        /// Which chunk is taken with how many bytes, or given back; parts of what there is.
        steps: Vec<(usize, u16)>,
        /// Bytes that are overwritten.
        places: Vec<(prop::sample::Index, u8)>,
    }

    fn cases() -> impl Strategy<Value = Case> {
        let bytes = prop_oneof![2..20_usize, 2..200_usize, 200..1500_usize];
        let steps = prop::collection::vec((0..64_usize, any::<u16>()), 0..120);
        let places = prop::collection::vec((any::<prop::sample::Index>(), 1..=u8::MAX), 60);
        (bytes, 1..64_usize, any::<u16>(), steps, places).prop_map(
            |(grains, chunks, keep, steps, places)| Case {
                chunk_bytes: grains * GRAIN,
                chunks: chunks.min(300_000 / (grains * GRAIN)),
                keep: part(keep, grains * GRAIN - CHUNK_OVERHEAD),
                steps,
                places,
            },
        )
    }

    /// A number up to `most`, mostly one of the ends.
    fn part(of: u16, most: usize) -> usize {
        match of % 4 {
            0 => usize::from(of / 4).min(most),
            1 => most - usize::from(of / 4).min(most),
            _ => most * usize::from(of) / usize::from(u16::MAX),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_wrong_byte_of_a_slab_is_found_in_its_page(case in cases()) {
            let Case { chunk_bytes, chunks, keep, .. } = case;
            with_heap(|domain, heap| {
                let slab = domain.allocate_slab(chunk_bytes, chunks, keep).unwrap();
                domain.allocate(100, 16).unwrap();
                let slab = slab.as_ptr() as u64;
                let end = slab + (chunks * chunk_bytes - BLOCK_HEADER) as u64;
                let room = chunk_bytes - BLOCK_HEADER;
                // What the server has of each chunk, and whether it is in use.
                let mut sizes = vec![(keep, false); chunks];
                for &(which, how) in &case.steps {
                    let (address, (size, taken)) = (
                        slab + (which % chunks * chunk_bytes) as u64,
                        &mut sizes[which % chunks],
                    );
                    *size = part(how, chunk_bytes - CHUNK_OVERHEAD);
                    let done = if *taken { heap.give_chunk(address, *size) } else { heap.take_chunk(address, *size) };
                    assert_eq!(done, Ok(true));
                    *taken = !*taken;
                }
                let span = heap.span_of(slab).unwrap();
                for page in (span.start()..span.end()).step_by(PAGE) {
                    heap.check_page(page).unwrap();
                }
                heap.check(u64::MAX).unwrap();
                for (place, flip) in &case.places {
                    // From the header of the head on.
                    let begin = HEAD_ROOM + 2 * BLOCK_HEADER;
                    let at = place.index(begin + chunks * chunk_bytes - BLOCK_HEADER);
                    let byte = (slab - begin as u64 + at as u64) as *mut u8;
                    let (number, offset) = match at.checked_sub(begin) {
                        Some(at) => (at / chunk_bytes, at % chunk_bytes),
                        None => (0, room),
                    };
                    let (size, taken) = sizes[number];
                    let is_theirs = offset < size;
                    let is_gap = (zone_end(size, room)..room - RED_ZONE_MIN).contains(&offset);
                    // SAFETY: a byte of the domain, which the request holds, and repaired below.
                    let store = |byte: *mut u8| unsafe { *byte ^= flip };
                    store(byte);
                    let page = byte as u64 & !(PAGE as u64 - 1);
                    let all = heap.check(u64::MAX).map(drop);
                    let one = heap.check_page(page);
                    let mut pages = PageCheck::new(heap);
                    let far = pages.check(page).map(drop);
                    let near = pages.check(page).map(drop);
                    store(byte);
                    let is_right = is_theirs || is_gap;
                    for found in [all, one, far, near] {
                        assert_eq!(found.is_ok(), is_right, "{offset} of {size} {taken}: {found:?}");
                        if let Err(damage) = found.as_ref() && offset < room {
                            let kind = if taken || offset >= room - RED_ZONE_MIN {
                                Kind::RedZone
                            } else {
                                Kind::UseAfterFree
                            };
                            assert_eq!(*damage, Damage::new(kind, byte as u64));
                        }
                    }
                }
                // The slab leaves nothing behind.
                let block = heap.join_slab(slab).unwrap();
                heap.check(u64::MAX).unwrap();
                heap.retire(block).unwrap();
                heap.release(block).unwrap();
                heap.check(u64::MAX).unwrap();
                assert_eq!(span.starts().next(slab, end), None);
                let filled = span.fills().next(slab, end);
                assert!(filled.is_none_or(|at| at < block + POISON_MAX as u64), "{filled:?}");
            });
        }
    }

    #[test]
    fn what_is_no_chunk_in_that_state_is_told_apart() {
        with_heap(|domain, heap| {
            let block = domain.allocate(200, 16).unwrap().as_ptr() as u64;
            let slab = domain.allocate_slab(96, 4, 8).unwrap().as_ptr() as u64;
            let other = domain.allocate_slab(96, 4, 8).unwrap().as_ptr() as u64;
            let [taken, given] = [slab + 96, slab + 192];
            assert_eq!(heap.take_chunk(taken, 72), Ok(true));
            let found = |outcome: Result<bool, Damage>| outcome.unwrap_err().kind;
            assert_eq!(found(heap.take_chunk(taken, 8)), Kind::HeapCorrupt);
            for wrong in [block, taken + 16, taken + 8, slab - 16, 16, 0] {
                assert_eq!(
                    found(heap.take_chunk(wrong, 8)),
                    Kind::HeapCorrupt,
                    "{wrong:#x}"
                );
                assert_eq!(
                    found(heap.give_chunk(wrong, 8)),
                    Kind::ForeignFree,
                    "{wrong:#x}"
                );
                assert_eq!(heap.join_slab(wrong).unwrap_err().kind, Kind::ForeignFree);
            }
            assert_eq!(found(heap.give_chunk(given, 8)), Kind::DoubleFree);
            // Not the first chunk.
            assert_eq!(heap.join_slab(taken).unwrap_err().kind, Kind::ForeignFree);
            // A block is none of them, nor the slab.
            let live = |address| heap.live(address).unwrap_err().kind;
            assert_eq!(live(taken), Kind::ForeignFree);
            assert_eq!(live(taken + 16), Kind::ForeignFree);
            assert_eq!(live(slab - 32), Kind::ForeignFree);
            assert_eq!(live(given), Kind::DoubleFree);
            // More than there is room for.
            assert_eq!(heap.take_chunk(given, 73), Ok(false));
            assert_eq!(heap.take_chunk(given, usize::MAX), Ok(false));
            assert_eq!(heap.give_chunk(taken, 73), Ok(false));
            assert_eq!(heap.join_slab(slab), Ok(slab - 32));
            assert_eq!(heap.join_slab(slab).unwrap_err().kind, Kind::ForeignFree);
            assert_eq!(found(heap.give_chunk(taken, 8)), Kind::ForeignFree);
            assert_eq!(heap.take_chunk(other, 8), Ok(true));
        });
    }

    #[test]
    fn slabs_that_do_not_fit_are_refused() {
        with_heap(|domain, heap| {
            let blocks = |heap: &Heap| heap.check(0).map(drop);
            for (chunk_bytes, chunks, keep) in [
                (0, 1, 0),
                (16, 1, 0),
                (40, 1, 0),
                (48, 0, 0),
                (48, 1, 25),
                (48, 1, usize::MAX),
                (1 << 62, 8, 0),
                (usize::MAX & !15, 1, 0),
            ] {
                let refused = domain.allocate_slab(chunk_bytes, chunks, keep);
                assert!(matches!(refused, Err(Error::Argument(_))), "{refused:?}");
            }
            for (chunk_bytes, chunks) in [(1 << 20, 1 << 20), (1 << 20, usize::MAX)] {
                let refused = domain.allocate_slab(chunk_bytes, chunks, 0);
                assert!(
                    matches!(refused, Err(Error::OutOfMemory { .. })),
                    "{refused:?}"
                );
            }
            blocks(heap).unwrap();
            domain.allocate_slab(48, 1, 24).unwrap();
        });
    }

    #[test]
    fn overrun_is_found_when_its_slab_is_freed() {
        // Behind a chunk in use, into one that is not, and in front of the first one.
        for (taken, offset) in [
            (true, 512 + 101),
            (false, 512 + 50),
            (true, usize::MAX - 19),
        ] {
            let domain = domain();
            let outcome = domain.run(|_| {
                let slab = domain.allocate_slab(256, 8, 8)?;
                if taken {
                    let chunk = NonNull::new(slab.as_ptr().wrapping_add(512)).unwrap();
                    domain.take_chunk(chunk, 100)?;
                }
                // SAFETY: a byte of the slab; the damage is the test.
                unsafe { slab.as_ptr().wrapping_add(offset).write(7) };
                // SAFETY: nobody uses it.
                unsafe { domain.deallocate_slab(slab) }
            });
            assert!(
                matches!(outcome, Err(crate::RunError::Failed(_))),
                "{taken} {offset}: {outcome:?}"
            );
        }
    }
}
