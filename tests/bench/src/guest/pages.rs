//! Pages that requests write.

use std::cell::Cell;
use std::hint::black_box;

use anyhow::{Result, anyhow};
use vmsrs::{App, Domain};

use super::{request, seal};

const PAGE: usize = 4096;

/// Pages of a block: the cold pages of as many requests as possible are to be others.
const PAGES: usize = 768;

/// Most pages that a request writes.
pub(super) const MOST: usize = 256;

/// A block of a domain, and ordinary memory of the same size.
pub(super) struct Pages {
    pub(super) user: &'static Domain,
    pub(super) block: Block,
    pub(super) plain: Block,
}

/// Memory that is written in turn, so that what a request writes was written by none for a while.
pub(super) struct Block {
    start: *mut u8,
    pages: usize,
    next: Cell<usize>,
    value: Cell<u8>,
}

// SAFETY: the memory is mapped in all threads, and nothing else writes it.
unsafe impl Send for Block {}

impl Pages {
    /// Takes both; nothing of the block has been written yet.
    pub(super) fn new(app: &'static App, key: &str) -> Result<Self> {
        let user = app.domain(key)?;
        let block = Block::large(user, PAGES)?;
        let plain = vec![0u8; (PAGES + 1) * PAGE].leak();
        let offset = plain.as_ptr().align_offset(PAGE);
        let plain = Block::new(plain.as_mut_ptr().wrapping_add(offset), PAGES);
        for _ in 0..PAGES / MOST {
            plain.write_cold(MOST);
        }
        Ok(Self { user, block, plain })
    }

    /// Uses each frame of the window once.
    pub(super) fn touch_window(&self, window_mib: u32) -> Result<()> {
        let frames = window_mib as usize * 1024 * 1024 / PAGE;
        for _ in 0..2 * frames / MOST {
            request(self.user, || self.block.write_cold(MOST))?;
            seal(self.user)?;
        }
        Ok(())
    }
}

impl Block {
    /// Takes a block of whole pages of a domain, which nobody has written.
    pub(super) fn large(domain: &'static Domain, pages: usize) -> Result<Self> {
        let block = domain.run(|_| domain.allocate(pages * PAGE, PAGE));
        let block = block.map_err(|error| anyhow!("take a block: {error:?}"))?;
        Ok(Self::new(block.as_ptr(), pages))
    }

    /// Takes a block within a page of a domain, writes and commits it.
    pub(super) fn small(domain: &'static Domain) -> Result<Self> {
        let block = domain.run(|_| {
            let block = Self::new(domain.allocate(64, 64)?.as_ptr(), 1);
            block.write_at(0, 1);
            Ok::<_, vmsrs::Error>(block)
        });
        block.map_err(|error| anyhow!("take a block: {error:?}"))
    }

    fn new(start: *mut u8, pages: usize) -> Self {
        Self {
            start,
            pages,
            next: Cell::new(0),
            value: Cell::new(0),
        }
    }

    /// Reads a byte.
    pub(super) fn read(&self) {
        // SAFETY: the block is mapped.
        black_box(unsafe { self.start.read_volatile() });
    }

    /// Writes a byte to each of `pages` pages, which are not the last ones that were written.
    pub(super) fn write_cold(&self, pages: usize) {
        self.write_at(self.turn(pages), pages);
    }

    /// Writes a byte to each of the first `pages` pages.
    pub(super) fn write_resident(&self, pages: usize) {
        self.write_at(0, pages);
    }

    /// The first of the next `pages` pages in turn.
    pub(super) fn turn(&self, pages: usize) -> usize {
        let next = self.next.get();
        let first = if next + pages <= self.pages { next } else { 0 };
        self.next.set(first + pages);
        first
    }

    /// Writes a byte to each of `pages` pages, another one each time: a page that is written but not changed may cost less.
    pub(super) fn write_at(&self, first: usize, pages: usize) {
        assert!(first + pages <= self.pages, "outside of the block");
        let value = self.value.get().wrapping_add(1);
        self.value.set(value);
        for page in first..first + pages {
            // SAFETY: the block has so many pages, which the caller's request may write.
            unsafe { self.start.add(page * PAGE).write_volatile(value) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cold_pages_come_in_turn() {
        let block = Block::new(std::ptr::null_mut(), PAGES);
        assert_eq!(block.turn(256), 0);
        assert_eq!(block.turn(256), 256);
        assert_eq!(block.turn(64), 512);
        assert_eq!(block.turn(256), 0);
        assert_eq!(block.turn(1), 256);
    }
}
