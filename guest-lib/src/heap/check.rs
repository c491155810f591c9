//! The audit's view of the heap: everything that can be checked of it, in the whole domain or page by
//! page.

use super::inner::Inner;
use super::layout::{BLOCK_HEADER, GRAIN, REACH, RED_ZONE_MAX, State};
use super::room::check_fill;
use super::span::Span;
use super::{Chunk, Damage, Heap, PAGE};

/// Where a page of the bitmaps was written, the chunks of a domain of at most this many blocks are compared with
/// them; in a larger one the allocator finds a wrong bit when it uses it.
const MAPPED_MAX: u64 = 64;

/// Checks pages of a heap one after the other.
pub(crate) struct PageCheck<'a> {
    heap: &'a Heap,
    /// The pages around the last one.
    near: Inner,
}

impl<'a> PageCheck<'a> {
    /// [`Heap::check_header`] has found a heap.
    pub(crate) fn new(heap: &'a Heap) -> Self {
        Self {
            heap,
            near: Inner::NONE,
        }
    }

    /// [`Heap::check_page`]; false if the page is not one of the heap.
    ///
    /// # Errors
    ///
    /// The first damage found.
    #[inline]
    pub(crate) fn check(&mut self, address: u64) -> Result<bool, Damage> {
        // Most pages are in the middle of a large block.
        if self.near.marked(address, REACH) == Some([false; 2]) {
            return Ok(true);
        }
        self.check_far(address)
    }

    /// The same for a page that is not known to be near the last one, or has bits.
    #[inline(never)]
    fn check_far(&mut self, address: u64) -> Result<bool, Damage> {
        let Some(span) = self.heap.span_of(address) else {
            return Ok(false);
        };
        if span.check_fresh(address)? {
            return Ok(true);
        }
        self.near = span.inner()?;
        match self.near.marked(address, REACH) {
            Some([false, false]) => Ok(()),
            Some([true, false]) => self.heap.check_blocks(span, address, address + PAGE as u64),
            Some([false, true]) => self.heap.check_page(address),
            _ => self.heap.check_page_of(span, address),
        }
        .map(|()| true)
    }
}

impl Heap {
    /// Blocks, those in quarantine included.
    fn blocks(&self) -> u64 {
        // SAFETY: the header is ours by new()'s contract.
        unsafe { (*self.header).blocks }
    }

    /// Whether there is a heap; its header is checked then.
    ///
    /// # Errors
    ///
    /// [`crate::Kind::HeapCorrupt`].
    pub(crate) fn check_header(&self) -> Result<bool, Damage> {
        self.ready()
    }

    /// Checks the domain's header and the heads of its lists; then the whole domain if it has at most
    /// `limit` blocks. Returns whether that was everything.
    ///
    /// # Errors
    ///
    /// The first damage found.
    pub(crate) fn check(&self, limit: u64) -> Result<bool, Damage> {
        if !self.ready()? {
            return Ok(true);
        }
        self.check_heads()?;
        if self.blocks() > limit {
            return Ok(false);
        }
        for span in self.spans() {
            if span.is_large() {
                span.fresh()?;
                Self::check_levels(span)?;
            }
            self.check_span(span, span.first(), span.end())?;
        }
        Ok(true)
    }

    /// Whether an address lies in the heap. Trusts nothing in the header.
    pub(crate) fn contains(&self, address: u64) -> bool {
        self.span_of(address).is_some()
    }

    /// Checks what a write to the page at `address` can have damaged: headers, links, red zones and filled
    /// room that lie in it or reach into it; the heads of the lists and the bitmaps if the page has some.
    /// [`Heap::check_header`] has found a heap.
    ///
    /// # Errors
    ///
    /// The first damage found.
    pub(crate) fn check_page(&self, address: u64) -> Result<(), Damage> {
        let span = self.span_of(address).ok_or(Damage::corrupt(address))?;
        Self::check_marked(span, address)?;
        self.check_page_of(span, address)
    }

    fn check_page_of(&self, span: Span, address: u64) -> Result<(), Damage> {
        if span.check_fresh(address)? {
            return Ok(());
        }
        let to = (address + PAGE as u64).min(span.end());
        if address == self.header as u64 {
            self.check_heads()?;
        }
        if address < span.first() && self.blocks() <= MAPPED_MAX {
            let (starts, fills) = span.mapped(address, to);
            let first = span.first();
            if !span.starts().are_in_levels(starts.clone())
                || !span.fills().are_in_levels(fills.clone())
            {
                return Err(Damage::corrupt(address));
            }
            let check = |address| Self::chunk(span, address);
            Self::check_chunks(
                span,
                starts.start.max(first),
                starts.end,
                Chunk::is_live,
                check,
            )?;
            check_fill(span, fills.start.max(first), fills.end)?;
            if span.is_above_maps(address) {
                Self::check_levels(span)?;
            }
        }
        if span.is_above_maps(address) {
            span.fresh()?;
        }
        self.check_span(span, address.max(span.first()), to)
    }

    /// Checks that the levels above *starts* lead to all chunks of a large extent.
    fn check_levels(span: Span) -> Result<(), Damage> {
        let mut address = span.first() + BLOCK_HEADER as u64;
        loop {
            if !span.starts().is_in_levels(address) {
                return Err(Damage::corrupt(address));
            }
            let end = Self::chunk(span, address)?.end();
            if end == span.end() {
                return Ok(());
            }
            address = end + BLOCK_HEADER as u64;
        }
    }

    /// Checks the block at an address, unless it was given back meanwhile.
    ///
    /// # Errors
    ///
    /// The damage.
    pub(crate) fn check_block(&self, address: u64) -> Result<(), Damage> {
        let span = self.span_of(address).ok_or(Damage::corrupt(address))?;
        if span.starts().get(address) {
            self.check_chunk(span, address).map(drop)
        } else {
            Ok(())
        }
    }

    /// Checks the chunks of a range of an extent, that they follow each other without a gap, and what
    /// is filled in the range.
    fn check_span(&self, span: Span, from: u64, to: u64) -> Result<(), Damage> {
        self.check_blocks(span, from, to)?;
        check_fill(span, from, to)
    }

    /// The same without what is filled.
    fn check_blocks(&self, span: Span, from: u64, to: u64) -> Result<(), Damage> {
        let check = |address| self.check_chunk(span, address);
        Self::check_chunks(span, from, to, Chunk::is_whole_live, check)
    }

    /// Checks the chunks of a range of an extent, and that they follow each other without a gap. With `is_whole`, if it
    /// says that nothing is wrong with the chunk at an address and that its room ends at another one; otherwise with
    /// `check`, which returns the chunk.
    #[expect(clippy::inline_always, reason = "for each page or block of an audit")]
    #[inline(always)]
    fn check_chunks(
        span: Span,
        from: u64,
        to: u64,
        is_whole: impl Fn(u64, u64) -> bool,
        check: impl Fn(u64) -> Result<Chunk, Damage>,
    ) -> Result<(), Damage> {
        if from >= to {
            return Ok(());
        }
        let (header, step) = (BLOCK_HEADER as u64, GRAIN as u64);
        let starts = span.starts();
        // A chunk of which neither a header nor a byte of the red zone is in the range has no chunk after it
        // that begins below this.
        let below = to + RED_ZONE_MAX as u64 + header + step;
        // The chunk after the last one in the range is most often less than a word of the bitmap away.
        let mut later = starts.ones(from, to + 1024);
        let first = later.peek();
        if first.is_none_or(|first| first >= below) && below < span.end() && from > span.first() {
            return Ok(());
        }
        // The chunk in which the range begins: its header may lie before.
        let mut address = match first {
            Some(first) if first == from => first,
            _ => match starts.before(from) {
                Some(before) => before,
                None if starts.get(span.first() + header) => span.first() + header,
                None => return Err(Damage::corrupt(span.first() + header)),
            },
        };
        if address < span.first() + header {
            return Err(Damage::corrupt(address));
        }
        if first == Some(address) {
            later.next();
        }
        loop {
            address = later.pass(address, to + header, &is_whole);
            if address >= to + header {
                return Ok(());
            }
            let chunk = check(address)?;
            let end = chunk.end();
            let after = end + header;
            match later.next() {
                Some(next) if next < after => return Err(Damage::corrupt(next)),
                _ if end == span.end() => return Ok(()),
                Some(next) if next == after => {}
                None if after >= below && starts.get(after) => {}
                _ => return Err(Damage::corrupt(after)),
            }
            address = after;
            if chunk.is_of_slab() {
                address = later.pass(address, to + header, Chunk::is_whole_of_slab);
            }
        }
    }

    /// Checks one chunk, and returns it.
    fn check_chunk(&self, span: Span, address: u64) -> Result<Chunk, Damage> {
        let chunk = Self::chunk(span, address)?;
        match chunk.state {
            State::Live | State::Freed | State::Slab => chunk.check_red_zone()?,
            State::Free => self.check_links(&chunk)?,
            State::Taken | State::Given => chunk.check_zones()?,
        }
        Ok(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::MockBackend;
    use crate::{Error, thread};
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// What a case does in a domain before the damage: sizes of blocks, and which of them it frees.
    fn blocks() -> impl Strategy<Value = Vec<(usize, bool)>> {
        let size = prop_oneof![
            0..200_usize,
            0..6000_usize,
            Just(5 * PAGE),
            Just(20 * PAGE),
            Just(1100 * PAGE)
        ];
        // With the chunks of two slabs at most MAPPED_MAX.
        prop::collection::vec((size, any::<bool>()), 1..20)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn damage_in_a_page_is_found_by_its_check(
            blocks in blocks(),
            slabs in prop::collection::vec((2..600_usize, 1..10_usize), 0..3),
            places in prop::collection::vec((any::<prop::sample::Index>(), 1..=u8::MAX), 50),
        ) {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let name = NUMBER.fetch_add(1, Ordering::SeqCst).to_string();
            let domain = app().domain(&name).unwrap();
            for freed in [false, true] {
                let outcome = domain.run(|_| {
                    for &(size, free) in &blocks {
                        let block = domain.allocate(size, 16)?;
                        if freed && free {
                            // SAFETY: used no more.
                            unsafe { domain.deallocate(block)? };
                        }
                    }
                    Ok::<_, Error>(())
                });
                outcome.unwrap();
            }
            let outcome = domain.run(|_| {
                for (grains, chunks) in slabs {
                    let slab = domain.allocate_slab(grains * GRAIN, chunks, 8)?;
                    domain.take_chunk(slab, grains * GRAIN / 2 - 8)?;
                }
                let heap = thread::current().unwrap().state().heap(domain);
                let spans: Vec<_> = heap.spans().collect();
                for (place, flip) in &places {
                    let span = spans[place.index(spans.len())];
                    // Mostly where the bookkeeping is, and where blocks meet.
                    let at = place.index((span.end() - span.start()) as usize) as u64;
                    let near = span.starts().before(span.start() + at);
                    let address = match at % 4 {
                        0 => span.start() + at,
                        1 => span.start() + at % (span.first() - span.start()),
                        _ => near.unwrap_or(span.first()) - at % 64,
                    };
                    // The whole audit does not look there.
                    if span.is_large() && address >= span.fresh().unwrap() {
                        continue;
                    }
                    let byte = address as *mut u8;
                    // SAFETY: a byte of the domain, which the request holds, and repaired below.
                    let store = |byte: *mut u8| unsafe { *byte ^= flip };
                    store(byte);
                    let page = address & !(PAGE as u64 - 1);
                    let all = heap.check(u64::MAX);
                    let one = heap.check_header().and_then(|_| heap.check_page(page));
                    // The same after another page of the extent.
                    let mut pages = PageCheck::new(&heap);
                    pages.near = span.inner().unwrap_or(Inner::NONE);
                    let near = heap.check_header().and_then(|_| pages.check(page));
                    let chunk = span.starts().before(address + 1 + BLOCK_HEADER as u64);
                    if let Some(chunk) = chunk.filter(|&chunk| span.can_start(chunk)) {
                        let live = Heap::chunk(span, chunk).is_ok_and(|chunk| chunk.state == State::Live);
                        let end = heap.check_chunk(span, chunk).ok().map(|chunk| chunk.end()).filter(|_| live);
                        let next = span.starts().next(chunk + GRAIN as u64, span.end());
                        if let Some(next) = next {
                            let next = next - BLOCK_HEADER as u64;
                            assert_eq!(Chunk::is_whole_live(chunk, next), end == Some(next), "{address:#x}");
                        }
                    }
                    store(byte);
                    // Bits that the levels of a large extent do not lead to are looked for in written pages alone.
                    let is_hidden = span.is_large() && address < span.first() && all.is_ok();
                    assert!(is_hidden || one.is_ok() == all.is_ok(), "{address:#x}: {one:?} {all:?}");
                    assert_eq!(near, one.map(|()| true), "{address:#x}");
                }
                for span in &spans {
                    for page in (span.start()..span.end()).step_by(PAGE) {
                        heap.check_page(page).unwrap();
                    }
                }
                Ok::<_, Error>(())
            });
            outcome.unwrap();
        }
    }

    #[test]
    fn first_chunk_without_its_bit_is_found_whatever_the_domain_has() {
        for (name, blocks) in [("few", 5), ("many", 200)] {
            let domain = app().domain(name).unwrap();
            let outcome = domain.run(|_| {
                for _ in 0..blocks {
                    domain.allocate(40, 16)?;
                }
                let heap = thread::current().unwrap().state().heap(domain);
                let span = heap.spans().next().unwrap();
                let first = span.first() + BLOCK_HEADER as u64;
                span.starts().clear(first);
                let page = first & !(PAGE as u64 - 1);
                let found = [heap.check_page(page), heap.check(u64::MAX).map(drop)];
                span.starts().set(first);
                assert!(found.iter().all(Result::is_err), "{name}: {found:?}");
                Ok::<_, Error>(())
            });
            outcome.unwrap();
        }
    }

    #[test]
    fn write_to_room_that_no_block_ever_had_is_found() {
        let domain = app().domain("fresh").unwrap();
        let outcome = domain.run(|_| {
            // The domain grows by more than the second block needs.
            domain.allocate(40 << 20, 16)?;
            domain.allocate(20_000, 16)?;
            let heap = thread::current().unwrap().state().heap(domain);
            let span = heap.spans().last().unwrap();
            assert!(span.is_large());
            let page = span.end() - 3 * PAGE as u64;
            heap.check_page(page).unwrap();
            let byte = (page + 100) as *mut u8;
            // SAFETY: a byte of the domain, which the request holds.
            unsafe { byte.write(1) };
            let damage = Damage::corrupt(page + 100);
            assert_eq!(heap.check_page(page), Err(damage));
            assert_eq!(PageCheck::new(&heap).check(page), Err(damage));
            // SAFETY: as above.
            unsafe { byte.write(0) };
            assert_eq!(PageCheck::new(&heap).check(page), Ok(true));
            Ok::<_, Error>(())
        });
        outcome.unwrap();
    }

    fn app() -> &'static crate::App {
        static APP: std::sync::OnceLock<&crate::App> = std::sync::OnceLock::new();
        APP.get_or_init(|| MockBackend::app("page by page", |_| ()))
    }

    /// A large extent of a domain, with some MiB in use.
    fn large(domain: &'static crate::Domain) -> Span {
        domain.allocate(200 << 20, 16).unwrap();
        domain.allocate(6 << 20, 16).unwrap();
        let heap = thread::current().unwrap().state().heap(domain);
        let span = heap.spans().last().unwrap();
        assert!(span.is_large());
        span
    }

    #[test]
    fn zeros_over_the_header_of_a_large_extent_are_found() {
        let domain = app().domain("header").unwrap();
        let outcome = domain.run(|_| {
            domain.allocate(40, 16)?;
            let span = large(domain);
            let heap = thread::current().unwrap().state().heap(domain);
            let header = span.large_header();
            // SAFETY: in the domain, which the request holds.
            let before = unsafe { header.cast::<[u64; 2]>().replace([0; 2]) };
            let page = header as u64 & !(PAGE as u64 - 1);
            let found = [
                heap.check_page(page),
                PageCheck::new(&heap).check(page).map(drop),
                heap.check(u64::MAX).map(drop),
                span.touch(span.end()),
            ];
            assert_eq!(found, [Err(Damage::corrupt(header as u64)); 4]);
            // SAFETY: as above.
            unsafe { header.cast::<[u64; 2]>().write(before) };
            Ok::<_, Error>(())
        });
        outcome.unwrap();
    }

    #[test]
    fn what_levels_do_not_lead_to_is_audited_all_the_same() {
        let domain = app().domain("levels").unwrap();
        let outcome = domain.run(|_| {
            domain.allocate(40, 16)?;
            large(domain);
            // More than MAPPED_MAX.
            let blocks: Result<Vec<_>, _> = (0..300).map(|_| domain.allocate(200, 16)).collect();
            let blocks: Vec<u64> = blocks?.iter().map(|block| block.as_ptr() as u64).collect();
            let heap = thread::current().unwrap().state().heap(domain);
            let span = heap.span_of(blocks[150]).unwrap();
            assert!(span.is_large());
            for (from, to) in [(blocks[0], blocks[299]), (span.first(), span.end())] {
                span.starts().forget_levels(from, to);
                for &block in &blocks {
                    // SAFETY: the red zone of a block.
                    let byte = unsafe { &mut *((block + 200) as *mut u8) };
                    *byte ^= 0xff;
                    let page = (block + 200) & !(PAGE as u64 - 1);
                    let found = [
                        heap.check_page(page),
                        PageCheck::new(&heap).check(page).map(drop),
                    ];
                    *byte ^= 0xff;
                    assert!(found.iter().all(Result::is_err), "{block:#x}: {found:?}");
                }
            }
            Err::<(), _>(Error::NotHeld)
        });
        assert!(matches!(outcome, Err(crate::RunError::GivenUp(_))));
    }
}
