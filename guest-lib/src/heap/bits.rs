//! One bitmap of an extent.

use super::layout::{BLOCK_HEADER, GRAIN, PLAIN_PAGES, levels_before_maps, levels_bytes};
use super::sums::Sums;
use std::mem::size_of;
use std::ops::Range;
use vmsrs_protocol::PAGE_SIZE;

const PAGE: u64 = PAGE_SIZE as u64;
const STEP: u64 = GRAIN as u64;

/// Bytes that a word of a bitmap stands for.
pub(super) const WORD: u64 = 64 * STEP;

/// Bytes for which a search looks at a bitmap itself, also if that has levels: more than the audit of a page looks through.
const NEAR: u64 = PAGE + 2 * WORD;

/// Whether all words are 0.
#[inline]
pub(super) fn is_zero<const N: usize>(words: &[u64; N]) -> bool {
    words.iter().fold(0, |all, word| all | word) == 0
}

/// Passes over words of a bitmap that are 0, `N` at a time. `word` has the bit of `at`; returns both for the first word that
/// was not passed over.
///
/// # Safety
///
/// The words of addresses below `to` can be read.
#[expect(clippy::inline_always, reason = "a loop of a few instructions")]
#[inline(always)]
unsafe fn pass_zeros<const N: usize>(mut at: u64, mut word: *mut u64, to: u64) -> (u64, *mut u64) {
    let bytes = N as u64 * WORD;
    // SAFETY: by the function's contract.
    while at + bytes <= to && is_zero(unsafe { &*word.cast::<[u64; N]>() }) {
        at += bytes;
        word = word.wrapping_add(N);
    }
    (at, word)
}

/// Bitmap number `MAP` of an extent. Addresses are those that its bits stand for; others have no bit, and are
/// treated as if theirs were 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bits<const MAP: usize> {
    /// First byte of the extent.
    start: u64,
    /// First byte after it.
    end: u64,
    words: *mut u64,
}

/// Where the bytes of chunks begin.
pub(super) type Starts = Bits<0>;

/// Which free room is filled.
pub(super) type Fills = Bits<1>;

impl<const MAP: usize> Bits<MAP> {
    /// That of an extent whose bytes are from `start` to `end`, and whose bitmaps begin at `maps`.
    #[inline]
    pub(super) fn new(start: u64, end: u64, maps: u64) -> Self {
        let words = (maps + MAP as u64 * Self::bytes(start, end)) as *mut u64;
        Self { start, end, words }
    }

    /// Bytes of the bitmap.
    fn bytes(start: u64, end: u64) -> u64 {
        (end - start) / (8 * STEP)
    }

    /// Whether the bitmap has levels above it.
    #[inline]
    fn has_levels(self) -> bool {
        self.end - self.start > PLAIN_PAGES as u64 * PAGE
    }

    /// Its levels.
    #[cold]
    pub(super) fn levels(self) -> Sums {
        let bytes = Self::bytes(self.start, self.end) as usize;
        let maps = self.words.wrapping_byte_sub(MAP * bytes);
        let pages = ((self.end - self.start) / PAGE) as usize;
        Sums::new(
            maps.wrapping_byte_sub(levels_before_maps(MAP, levels_bytes(pages))),
            bytes / size_of::<u64>(),
        )
    }

    /// The number of a word.
    fn number(self, word: *mut u64) -> usize {
        (word as usize - self.words as usize) / size_of::<u64>()
    }

    /// What a word's first bit stands for.
    fn address_of(self, number: usize) -> u64 {
        self.start + number as u64 * WORD
    }

    /// The word of an address and the bit in it.
    fn place(self, address: u64) -> Option<(*mut u64, u32)> {
        if !(self.start..self.end).contains(&address) {
            return None;
        }
        let grain = (address - self.start) / STEP;
        let word = self.words.wrapping_add((grain / 64) as usize);
        Some((word, (grain % 64) as u32))
    }

    pub(super) fn get(self, address: u64) -> bool {
        // SAFETY: place() gives words of the extent's bitmap, which the request holds.
        self.place(address)
            .is_some_and(|(word, bit)| unsafe { word.read() } >> bit & 1 != 0)
    }

    pub(super) fn set(self, address: u64) {
        if let Some((word, bit)) = self.place(address) {
            self.set_bits(word, 1 << bit);
        }
    }

    pub(super) fn clear(self, address: u64) {
        if let Some((word, bit)) = self.place(address) {
            self.clear_bits(word, 1 << bit);
        }
    }

    /// Sets bits of a word that `Bits::place` gave.
    #[inline]
    fn set_bits(self, word: *mut u64, mask: u64) {
        // SAFETY: as in get().
        let before = unsafe { word.read() };
        // SAFETY: as above.
        unsafe { word.write(before | mask) };
        if before == 0 && self.has_levels() {
            self.levels().mark(self.number(word));
        }
    }

    /// Clears bits of a word that `Bits::place` gave.
    #[inline]
    fn clear_bits(self, word: *mut u64, mask: u64) {
        // SAFETY: as in get().
        let before = unsafe { word.read() };
        let rest = before & !mask;
        // SAFETY: as above.
        unsafe { word.write(rest) };
        if rest == 0 && before != 0 && self.has_levels() {
            self.levels().unmark(self.number(word));
        }
    }

    /// The word of an address, the bits in it of a range that begins there, and where the rest of the range does.
    #[inline]
    fn masked(self, from: u64, to: u64) -> Option<(*mut u64, u64, u64)> {
        let (word, bit) = self.place(from).filter(|_| from < to)?;
        let count = (to - from).div_ceil(STEP).min(u64::from(64 - bit));
        let mask = u64::MAX >> (64 - count) << bit;
        Some((word, mask, from + count * STEP))
    }

    #[inline]
    pub(super) fn set_range(self, from: u64, to: u64) {
        let mut at = from;
        while let Some((word, mask, next)) = self.masked(at, to) {
            self.set_bits(word, mask);
            at = next;
        }
    }

    /// Clears the bits of a range; words that are 0 already are not written.
    pub(super) fn clear_range(self, from: u64, to: u64) {
        let mut at = from;
        while let Some(found) = self.next(at, to)
            && let Some((word, mask, next)) = self.masked(found, to)
        {
            self.clear_bits(word, mask);
            at = next;
        }
    }

    /// The first address from `from` on, below `to`, whose bit is set.
    pub(super) fn next(self, from: u64, to: u64) -> Option<u64> {
        let (mut at, to) = (from.max(self.start), to.min(self.end));
        if at >= to {
            return None;
        }
        let (mut word, bit) = self.place(at)?;
        // SAFETY: as in get().
        let mut rest = unsafe { word.read() } >> bit;
        if rest == 0 {
            // What is near is found whatever the levels say.
            if to - at > NEAR && self.has_levels() {
                return self.next_word(self.number(word) + 1, to);
            }
            at += u64::from(64 - bit) * STEP;
            word = word.wrapping_add(1);
            // Each commit looks through whole bitmaps, and most of their words are 0.
            // SAFETY: as in get(): the words of addresses below `to`.
            unsafe {
                (at, word) = pass_zeros::<64>(at, word, to);
                (at, word) = pass_zeros::<16>(at, word, to);
                (at, word) = pass_zeros::<4>(at, word, to);
            }
            // SAFETY: as above.
            while at < to && unsafe { word.read() } == 0 {
                at += WORD;
                word = word.wrapping_add(1);
            }
            if at >= to {
                return None;
            }
            // SAFETY: as above.
            rest = unsafe { word.read() };
        }
        let found = at + u64::from(rest.trailing_zeros()) * STEP;
        (found < to).then_some(found)
    }

    /// The same from the beginning of a word on, in a bitmap with levels.
    #[cold]
    fn next_word(self, mut number: usize, to: u64) -> Option<u64> {
        loop {
            number = self.levels().next(number)?;
            let at = self.address_of(number);
            if at >= to {
                return None;
            }
            // SAFETY: as in get(): the levels have a bit for each word.
            let word = unsafe { self.words.wrapping_add(number).read() };
            // 0 if the levels are wrong.
            if word != 0 {
                let found = at + u64::from(word.trailing_zeros()) * STEP;
                return (found < to).then_some(found);
            }
            number += 1;
        }
    }

    /// Whether all words from that of an address to that before another one are found by the levels, if they have bits.
    pub(super) fn are_in_levels(self, addresses: Range<u64>) -> bool {
        let words = addresses.step_by(WORD as usize);
        let mut places = words.filter_map(|address| self.place(address));
        !self.has_levels()
            || places.all(|(word, _)| {
                // SAFETY: as in get().
                unsafe { word.read() == 0 || self.levels().has(self.number(word)) }
            })
    }

    /// Whether an address whose bit is set is found by the levels, too.
    pub(super) fn is_in_levels(self, address: u64) -> bool {
        let place = self.place(address);
        !self.has_levels() || place.is_some_and(|(word, _)| self.levels().has(self.number(word)))
    }

    /// The addresses from `from` on, below `to` or some after it, whose bits are set.
    #[inline]
    pub(super) fn ones(self, from: u64, to: u64) -> Ones<MAP> {
        let (from, to) = (from.max(self.start), to.min(self.end));
        let grain = (from - self.start) / STEP;
        let word = self.words.wrapping_add((grain / 64) as usize);
        let mut ones = Ones {
            bits: self,
            word,
            base: self.start + grain / 64 * WORD,
            rest: 0,
            to,
        };
        if from < to {
            // SAFETY: as in get().
            ones.rest = unsafe { word.read() } >> (grain % 64) << (grain % 64);
        }
        ones
    }

    /// The first address from `from` on whose bit is not set, or `to` if all below it are.
    pub(super) fn next_clear(self, from: u64, to: u64) -> u64 {
        let mut at = from;
        while at < to {
            let Some((word, bit)) = self.place(at) else {
                return at;
            };
            // SAFETY: as in get().
            let rest = !unsafe { word.read() } >> bit;
            if rest != 0 {
                return to.min(at + u64::from(rest.trailing_zeros()) * STEP);
            }
            at += u64::from(64 - bit) * STEP;
        }
        to
    }

    /// The last address below `below` whose bit is set.
    pub(super) fn before(self, below: u64) -> Option<u64> {
        let at = below.min(self.end).checked_sub(STEP)?;
        let (mut word, bit) = self.place(at)?;
        // SAFETY: as in get().
        let rest = unsafe { word.read() } << (63 - bit);
        if rest != 0 {
            return Some(at - u64::from(rest.leading_zeros()) * STEP);
        }
        if self.has_levels() {
            return self.before_word(self.number(word));
        }
        // The first address of the word.
        let mut at = at - u64::from(bit) * STEP;
        while at >= self.start + 4 * WORD {
            let words = word.wrapping_sub(4).cast::<[u64; 4]>();
            // SAFETY: as in get(): the words of addresses from `start` on.
            if unsafe { words.read() } != [0; 4] {
                break;
            }
            at -= 4 * WORD;
            word = words.cast();
        }
        while at > self.start {
            at -= WORD;
            word = word.wrapping_sub(1);
            // SAFETY: as above.
            let rest = unsafe { word.read() };
            if rest != 0 {
                return Some(at + u64::from(rest.ilog2()) * STEP);
            }
        }
        None
    }
}

impl<const MAP: usize> Bits<MAP> {
    /// The last address in a word before a certain one whose bit is set, in a bitmap with levels.
    #[cold]
    fn before_word(self, mut number: usize) -> Option<u64> {
        loop {
            number = self.levels().before(number)?;
            // SAFETY: as in get(): the levels have a bit for each word.
            let word = unsafe { self.words.wrapping_add(number).read() };
            // 0 if the levels are wrong.
            if let Some(bit) = word.checked_ilog2() {
                return Some(self.address_of(number) + u64::from(bit) * STEP);
            }
        }
    }
}

#[cfg(test)]
impl<const MAP: usize> Bits<MAP> {
    /// Makes the levels say that there is nothing in a range.
    pub(super) fn forget_levels(self, from: u64, to: u64) {
        for address in (from..to).step_by(WORD as usize) {
            if let Some((word, _)) = self.place(address) {
                self.levels().unmark(self.number(word));
            }
        }
    }
}

/// Addresses whose bits are set, one word of the bitmap after the other.
#[derive(Debug)]
pub(super) struct Ones<const MAP: usize> {
    bits: Bits<MAP>,
    /// The present word.
    word: *const u64,
    /// What its lowest bit stands for.
    base: u64,
    /// Its bits that have not been returned.
    rest: u64,
    /// The last word has the bit of the address before this.
    to: u64,
}

impl<const MAP: usize> Ones<MAP> {
    /// Goes on to the next word that has a bit; false if there is none.
    #[expect(clippy::inline_always, reason = "for each page or block of an audit")]
    #[inline(always)]
    fn refill(&mut self) -> bool {
        if self.base + WORD >= self.to {
            return false;
        }
        self.base += WORD;
        self.word = self.word.wrapping_add(1);
        // SAFETY: as in Bits::get().
        self.rest = unsafe { self.word.read() };
        self.rest != 0 || self.skip()
    }

    /// Passes over words without bits.
    #[inline(never)]
    fn skip(&mut self) -> bool {
        let found = self.bits.next(self.base, self.to);
        let words = (found.unwrap_or(self.to - 1) - self.base) / WORD;
        self.base += words * WORD;
        self.word = self.word.wrapping_add(words as usize);
        // SAFETY: as in Bits::get().
        self.rest = unsafe { self.word.read() };
        self.rest != 0
    }

    /// What `next()` will return.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<u64> {
        (self.rest != 0 || self.refill())
            .then(|| self.base + u64::from(self.rest.trailing_zeros()) * STEP)
    }

    /// Passes over addresses below `limit` as long as `is_whole` says so for the chunk at the one before, the first being
    /// `address`, and the end of its room. Returns the last one that was passed over, or `address`.
    // By itself, it has all that it needs in registers.
    #[inline(never)]
    pub(super) fn pass(
        &mut self,
        mut address: u64,
        limit: u64,
        is_whole: impl Fn(u64, u64) -> bool,
    ) -> u64 {
        // Inlined twice.
        let word = |base: u64, mut rest: u64, mut address: u64, limit: u64| {
            let ends = base - BLOCK_HEADER as u64;
            while rest != 0 && address < limit {
                let end = ends + u64::from(rest.trailing_zeros()) * STEP;
                if !is_whole(address, end) {
                    return (address, rest, false);
                }
                rest &= rest - 1;
                address = end + BLOCK_HEADER as u64;
            }
            (address, rest, true)
        };
        while address < limit && (self.rest != 0 || self.refill()) {
            let (passed, rest, is_good) = if self.base + WORD <= limit {
                word(self.base, self.rest, address, u64::MAX)
            } else {
                word(self.base, self.rest, address, limit)
            };
            (address, self.rest) = (passed, rest);
            if !is_good {
                break;
            }
        }
        address
    }
}

impl<const MAP: usize> Iterator for Ones<MAP> {
    type Item = u64;

    #[inline]
    fn next(&mut self) -> Option<u64> {
        let found = self.peek()?;
        self.rest &= self.rest - 1;
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1 << 20;
    const WORDS: usize = 96;
    const GRAINS: u64 = 64 * WORDS as u64;

    #[test]
    fn set_and_clear_bits_are_found_from_everywhere() {
        let mut words = [0u64; WORDS];
        let bits = Starts::new(START, START + GRAINS * STEP, words.as_mut_ptr() as u64);
        let address = |grain: u64| START + grain * STEP;
        let set = [0, 5, 63, 64, 700, 701, 1000, GRAINS - 1];
        for grain in set {
            bits.set(address(grain));
        }
        for from in 0..=GRAINS {
            for to in [from, from + 1, from + 255, from + 700, GRAINS, GRAINS + 9] {
                let expected = set.into_iter().find(|&grain| grain >= from && grain < to);
                let found = bits.next(address(from), address(to));
                assert_eq!(found, expected.map(address), "from {from} to {to}");
                let all: Vec<_> = bits.ones(address(from), address(to)).collect();
                let to = if from < to {
                    to.next_multiple_of(64)
                } else {
                    to
                };
                let expected = set.into_iter().filter(|&grain| grain >= from && grain < to);
                assert_eq!(
                    all,
                    expected.map(address).collect::<Vec<_>>(),
                    "from {from} to {to}"
                );
            }
        }
        assert_eq!(bits.next(0, u64::MAX), Some(address(0)));
        for below in 0..=GRAINS + 9 {
            let expected = set.into_iter().rfind(|&grain| grain < below);
            assert_eq!(
                bits.before(address(below)),
                expected.map(address),
                "below {below}"
            );
        }
        for from in 0..=GRAINS {
            for to in [from, from + 1, from + 70, GRAINS] {
                let expected = (from..to).find(|grain| !set.contains(grain));
                let found = bits.next_clear(address(from), address(to));
                assert_eq!(
                    found,
                    address(expected.unwrap_or(to)),
                    "from {from} to {to}"
                );
            }
        }
        bits.set_range(address(60), address(300));
        assert_eq!(bits.next_clear(address(63), address(400)), address(300));
        assert_eq!(bits.next_clear(address(63), address(290)), address(290));
        bits.clear_range(0, u64::MAX);
        assert_eq!(bits.next(0, u64::MAX), None);
    }

    #[test]
    fn ranges_are_set_and_cleared_to_the_bit() {
        let mut words = [0u64; 4];
        let bits = Starts::new(START, START + 4 * WORD, words.as_mut_ptr() as u64);
        let address = |grain: u64| START + grain * STEP;
        let marked = || (0..256).filter(|&grain| bits.get(address(grain)));
        for from in 0..=256 {
            for to in [0, 1, 63, 64, 65, 127, 128, 200, 255, 256, 300] {
                bits.set_range(address(from), address(to));
                assert!(marked().eq(from..to.min(256)), "from {from} to {to}");
                bits.set_range(START, START + 4 * WORD);
                bits.clear_range(address(from), address(to));
                let others = (0..256).filter(|grain| !(from..to).contains(grain));
                assert!(marked().eq(others), "from {from} to {to}");
                bits.clear_range(START, START + 4 * WORD);
            }
        }
    }
}
