//! The audit's view of the heap: everything that can be checked of it, in the whole domain or page by
//! page.

use super::layout::{BLOCK_HEADER, GRAIN, State};
use super::room::check_fill;
use super::span::Span;
use super::{Damage, Heap, PAGE};

impl Heap {
    /// Blocks, those in quarantine included.
    fn blocks(&self) -> u64 {
        // SAFETY: the header is ours by new()'s contract.
        unsafe { (*self.header).blocks }
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

    /// Checks everything that lies in one page of the domain, at `address`, and the chunk that reaches
    /// into it; [`Heap::check`] has checked the header.
    ///
    /// # Errors
    ///
    /// The first damage found.
    pub(crate) fn check_page(&self, address: u64) -> Result<(), Damage> {
        let span = self.span_of(address).ok_or(Damage::corrupt(address))?;
        let from = address.max(span.first());
        self.check_span(span, from, (address + PAGE as u64).min(span.end()))
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
        if from >= to {
            return Ok(());
        }
        let header = BLOCK_HEADER as u64;
        // The chunk in which the range begins: its header may lie before.
        let first = span.first() + header;
        let mut address = span.starts().before(from + GRAIN as u64).unwrap_or(first);
        loop {
            let end = self.check_chunk(span, address)?;
            let next = span.starts().next(address + GRAIN as u64, span.end());
            if end == span.end() {
                if let Some(next) = next {
                    return Err(Damage::corrupt(next));
                }
                break;
            }
            if next != Some(end + header) {
                return Err(Damage::corrupt(end + header));
            }
            if end >= to {
                break;
            }
            address = end + header;
        }
        check_fill(span, from, to)
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
