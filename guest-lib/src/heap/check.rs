//! The audit's view of the heap: everything that can be checked of it, in the whole domain or page by
//! page.

use super::layout::{BLOCK_HEADER, GRAIN, RED_ZONE_MAX, State};
use super::room::check_fill;
use super::span::Span;
use super::{Damage, Heap, PAGE};

/// Where a page of the bitmaps was written, the chunks of a domain of at most this many blocks are compared with
/// them; in a larger one the allocator finds a wrong bit when it uses it.
const MAPPED_MAX: u64 = 64;

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
        let to = (address + PAGE as u64).min(span.end());
        if address == self.header as u64 {
            self.check_heads()?;
        }
        if address < span.first() && self.blocks() <= MAPPED_MAX {
            let (starts, fills) = span.mapped(address, to);
            let end = |address| Self::chunk(span, address).map(|chunk| chunk.end());
            Self::check_chunks(span, starts.start, starts.end, end)?;
            check_fill(span, fills.start, fills.end)?;
        }
        self.check_span(span, address.max(span.first()), to)
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
        Self::check_chunks(span, from, to, |address| self.check_chunk(span, address))?;
        check_fill(span, from, to)
    }

    /// Checks the chunks of a range of an extent by `check`, which returns where a chunk's room ends, and
    /// that they follow each other without a gap.
    fn check_chunks(
        span: Span,
        from: u64,
        to: u64,
        check: impl Fn(u64) -> Result<u64, Damage>,
    ) -> Result<(), Damage> {
        if from >= to {
            return Ok(());
        }
        let (header, step) = (BLOCK_HEADER as u64, GRAIN as u64);
        let starts = span.starts();
        // A chunk of which neither a header nor a byte of the red zone is in the range has no chunk after it
        // that begins below this.
        let below = to + RED_ZONE_MAX as u64 + header + step;
        if below < span.end() && from > span.first() && starts.next(from, below).is_none() {
            return Ok(());
        }
        // The chunk in which the range begins: its header may lie before.
        let first = span.first() + header;
        let mut address = starts.before(from + step).unwrap_or(first);
        loop {
            let end = check(address)?;
            let inside = starts.next(from.max(address + step), below.min(end + header));
            if let Some(inside) = inside {
                return Err(Damage::corrupt(inside));
            }
            if end == span.end() {
                return Ok(());
            }
            if !starts.get(end + header) {
                return Err(Damage::corrupt(end + header));
            }
            if end >= to {
                return Ok(());
            }
            address = end + header;
        }
    }

    /// Checks one chunk; returns where its room ends.
    fn check_chunk(&self, span: Span, address: u64) -> Result<u64, Damage> {
        let chunk = Self::chunk(span, address)?;
        match chunk.state {
            State::Live | State::Freed => chunk.check_red_zone()?,
            State::Free => self.check_links(&chunk)?,
        }
        Ok(chunk.end())
    }
}
