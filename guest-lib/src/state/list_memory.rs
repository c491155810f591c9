//! The memory of a list that a request makes, and what the library knows of it.
//!
//! Both are memory that the request could write to by a wrong pointer, so a check word binds what is known.

use super::check::check_word;
use crate::error::Error;
use crate::os::region::Region;

/// A list's memory, whose it is and how much it holds.
pub(super) struct ListMemory {
    /// Mapped when it is first used.
    region: Option<Region>,
    /// The request that the list is of; 0 for none.
    tag: u64,
    /// Its entries.
    count: usize,
    /// A place in the list or its memory that is the owner's.
    end: usize,
    check: u64,
}

impl ListMemory {
    pub(super) fn new() -> Self {
        let mut this = Self {
            region: None,
            tag: 0,
            count: 0,
            end: 0,
            check: 0,
        };
        this.set(0, 0, 0);
        this
    }

    fn check_word(&self) -> u64 {
        let region = self.region.as_ref();
        let region = region.map_or([0; 2], |region| [region.low() as u64, region.size() as u64]);
        let [low, size] = region;
        check_word(self.tag, [self.count as u64, self.end as u64, low, size])
    }

    /// Whose it is, its entries, and the owner's place.
    pub(super) fn set(&mut self, tag: u64, count: usize, end: usize) {
        (self.tag, self.count, self.end) = (tag, count, end);
        self.check = self.check_word();
    }

    /// Whether it is as the library has left it.
    pub(super) fn is_whole(&self) -> bool {
        self.check == self.check_word()
    }

    /// Whether it is that of the request with that tag, as the library has left it.
    pub(super) fn is_of(&self, tag: u64) -> bool {
        self.tag == tag && self.is_whole()
    }

    /// Begins the list of a request, in memory of that size.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if there is no memory.
    pub(super) fn begin(&mut self, tag: u64, size: usize) -> Result<(), Error> {
        if !self.is_whole() {
            self.abandon();
        }
        if self.region.is_none() {
            self.region = Some(Region::new(size)?);
        }
        self.set(tag, 0, 0);
        Ok(())
    }

    /// Gives the memory up: nobody knows whose it is.
    pub(super) fn abandon(&mut self) {
        std::mem::forget(self.region.take());
    }

    pub(super) fn region(&self) -> Option<&Region> {
        self.region.as_ref()
    }

    pub(super) fn tag(&self) -> u64 {
        self.tag
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// Changes numbers without the check word, as a stray write does.
    #[cfg(test)]
    pub(super) fn damage(&mut self, change: impl FnOnce(&mut u64, &mut usize, &mut usize)) {
        change(&mut self.tag, &mut self.count, &mut self.end);
    }
}
